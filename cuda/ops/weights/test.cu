#include "../../test/matrices.h"

using namespace harness;

TEST(dequantize_rounds_once) {
    Random random(41);
    for (uint32_t format = 0; format < ORCD_N_FORMATS; format++) {
        const uint32_t n_cols = block_of(format) == 256 ? 512 : 96, pitch = n_cols + 32;
        TestMatrix w(format, 37, n_cols, random, 0.02f);
        Guarded<__half> out(37 * pitch);
        orcd_dequantize_args a{w.matrix, reinterpret_cast<orcd_f16 *>(out.get()), pitch};
        CUDA(orcd_dequantize(&a, nullptr));
        const std::vector<__half> got = out.read();
        bool same = true;
        for (uint32_t row = 0; row < 37; row++)
            for (uint32_t i = 0; i < pitch; i++) {
                const float want = i < n_cols ? w.values[row * n_cols + i] * w.matrix.scale : 0;
                same &= __half_as_ushort(got[row * pitch + i]) == __half_as_ushort(__float2half_rn(want));
            }
        CHECK(same, "%s", name_of(format));
    }
}

TEST(row_stats_finds_the_largest_and_the_norm) {
    Random random(42);
    for (uint32_t format = 0; format < ORCD_N_FORMATS; format++) {
        const uint32_t n_cols = block_of(format) == 256 ? 512 : 160;
        TestMatrix w(format, 37, n_cols, random);
        Guarded<float> largest(37), norm(37);
        orcd_row_stats_args a{w.matrix, largest.get(), norm.get()};
        CUDA(orcd_row_stats(&a, nullptr));
        std::vector<float> want_largest;
        std::vector<double> want_norm;
        for (uint32_t row = 0; row < 37; row++) {
            float most = 0;
            double sum = 0;
            for (uint32_t i = 0; i < n_cols; i++) {
                const float v = w.values[row * n_cols + i];
                most = std::fmax(most, std::fabs(v));
                sum += (double)v * v;
            }
            want_largest.push_back(most);
            want_norm.push_back(std::sqrt(sum));
        }
        CHECK(same_bits(largest.read(), want_largest), "%s", name_of(format));
        CHECK(relative_error(norm.read(), want_norm) < 1e-6, "%s", name_of(format));
    }
}
