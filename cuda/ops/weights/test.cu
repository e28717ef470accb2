#include "../../test/matrices.h"
#include "reference.h"

using namespace harness;

TEST(dequantize_rounds_once) {
    Random random(41);
    for (uint32_t format = 0; format < 4; format++) {
        TestMatrix w(format, 37, 96, random, 0.02f);
        Guarded<__half> out(37 * 128);
        orcd_dequantize_args a{w.matrix, reinterpret_cast<orcd_f16 *>(out.get()), 128};
        CUDA(orcd_dequantize(&a, nullptr));
        const std::vector<__half> got = out.read();
        bool same = true;
        for (uint32_t row = 0; row < 37; row++)
            for (uint32_t i = 0; i < 128; i++) {
                const float want = i < 96 ? w.values[row * 96 + i] * w.matrix.scale : 0;
                same &= __half_as_ushort(got[row * 128 + i]) == __half_as_ushort(__float2half_rn(want));
            }
        CHECK(same, "%s", name_of(format));
    }
}

TEST(row_stats_finds_the_largest_and_the_norm) {
    Random random(42);
    for (uint32_t format = 0; format < 4; format++) {
        TestMatrix w(format, 37, 160, random);
        Guarded<float> largest(37), norm(37);
        orcd_row_stats_args a{w.matrix, largest.get(), norm.get()};
        CUDA(orcd_row_stats(&a, nullptr));
        std::vector<float> want_largest;
        std::vector<double> want_norm;
        for (uint32_t row = 0; row < 37; row++) {
            float most = 0;
            double sum = 0;
            for (uint32_t i = 0; i < 160; i++) {
                const float v = w.values[row * 160 + i];
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

TEST(split_q8_0_takes_every_block_apart) {
    Random random(43);
    for (size_t n_blocks : {1ul, 3ul, 1000ul, 700000ul}) {
        std::vector<uint8_t> blocks(n_blocks * 34);
        for (uint8_t &b : blocks) b = (uint8_t)random.next();
        Guarded<uint8_t> d_blocks(blocks);
        Guarded<int8_t> values(n_blocks * 32);
        Guarded<uint16_t> scales(n_blocks);
        orcd_split_q8_0_args a{d_blocks.get(), values.get(), reinterpret_cast<orcd_f16 *>(scales.get()), n_blocks};
        CUDA(orcd_split_q8_0(&a, nullptr));
        std::vector<int8_t> want_values;
        std::vector<uint16_t> want_scales;
        split_q8_0_reference(blocks, want_values, want_scales);
        CHECK(same_bits(values.read(), want_values) && same_bits(scales.read(), want_scales), "%zu blocks", n_blocks);
    }
}
