// Tolerances: F32 sums of up to 5,000 squares err by some 1e-6; out is rounded to halves, 2^-12 at most.
#include "../../test/harness.h"
#include "reference.h"
#include "worker_cuda.h"

using namespace harness;

TEST(rms_norm_adds_partials_and_is_close_to_the_reference) {
    Random random(21);
    for (uint32_t d_model : {1u, 36u, 42u, 84u, 255u, 896u, 4096u, 5001u}) {
        for (uint32_t n_tokens : {1u, 5u, 64u}) {
            for (uint32_t n_partials : {0u, 1u, 3u}) {
                const uint32_t pitch = (d_model + 31) / 32 * 32;
                const std::vector<float> before = random.normals((size_t)n_tokens * d_model, 3.0f);
                const std::vector<float> added = random.normals((size_t)n_partials * n_tokens * d_model + 1);
                const std::vector<float> weight = random.normals(d_model, 7.0f);
                Guarded<float> residual(before), partials(added), d_weight(weight), f32((size_t)n_tokens * d_model);
                Guarded<float> scale(n_tokens), unscale(n_tokens);
                Guarded<__half> out((size_t)n_tokens * pitch);
                orcd_rms_norm_args a{};
                a.residual = residual.get();
                a.partials = partials.get();
                a.n_partials = n_partials;
                a.weight = d_weight.get();
                a.eps = 1e-6f;
                a.out_scale = 4.0f;
                a.out = reinterpret_cast<orcd_f16 *>(out.get());
                a.out_pitch = pitch;
                a.ffn_bound = 3.0f;
                a.ffn_scale = scale.get();
                a.ffn_unscale = unscale.get();
                a.out_f32 = f32.get();
                a.n_tokens = n_tokens;
                a.d_model = d_model;
                CUDA(orcd_rms_norm(&a, nullptr));
                std::vector<double> x(before.begin(), before.end());
                for (size_t i = 0; i < x.size(); i++)
                    for (uint32_t p = 0; p < n_partials; p++) x[i] += added[p * x.size() + i];
                const std::vector<double> want = rms_norm_reference(x, weight, 1e-6);
                CHECK(relative_error(residual.read(), x) < 1e-6, "d_model %u: the residual is off", d_model);
                CHECK(relative_error(f32.read(), want) < 2e-6, "d_model %u: off by %g", d_model, relative_error(f32.read(), want));
                const std::vector<__half> halves = out.read();
                const std::vector<float> scales = scale.read(), unscales = unscale.read();
                std::vector<double> got(want.size());
                bool pads_untouched = true;
                for (uint32_t token = 0; token < n_tokens; token++) {
                    double square = 0;
                    for (uint32_t i = 0; i < pitch; i++) {
                        const __half h = halves[(size_t)token * pitch + i];
                        if (i < d_model) {
                            got[(size_t)token * d_model + i] = __half2float(h) / 4.0;
                            square += want[(size_t)token * d_model + i] * want[(size_t)token * d_model + i];
                        } else {
                            pads_untouched &= __half_as_ushort(h) == 0xFFFF;
                        }
                    }
                    const double scaled = 3.0 * square * scales[token];
                    CHECK(scaled <= 16400 && scaled > 8000, "the bound times its scale is %g", scaled);
                    CHECK(scales[token] * unscales[token] == 1.0f, "the scales are no inverses");
                }
                CHECK(relative_error(got, want) < 4e-4, "d_model %u: halves off by %g", d_model, relative_error(got, want));
                CHECK(pads_untouched, "the columns that pad a row were written");
            }
        }
    }
}

TEST(rms_norm_gathers_rows) {
    Random random(22);
    const uint32_t d_model = 96, n_rows = 9;
    const std::vector<float> x = random.normals(n_rows * d_model), weight = random.normals(d_model);
    const std::vector<uint32_t> rows = {8, 0, 3};
    Guarded<float> residual(x), d_weight(weight), f32(rows.size() * d_model);
    Guarded<uint32_t> d_rows(rows);
    Guarded<__half> out(rows.size() * d_model);
    orcd_rms_norm_args a{};
    a.residual = residual.get();
    a.rows = d_rows.get();
    a.weight = d_weight.get();
    a.eps = 1e-5f;
    a.out_scale = 1.0f;
    a.out = reinterpret_cast<orcd_f16 *>(out.get());
    a.out_pitch = d_model;
    a.out_f32 = f32.get();
    a.n_tokens = (uint32_t)rows.size();
    a.d_model = d_model;
    CUDA(orcd_rms_norm(&a, nullptr));
    std::vector<double> gathered;
    for (uint32_t row : rows) gathered.insert(gathered.end(), x.begin() + row * d_model, x.begin() + (row + 1) * d_model);
    CHECK(relative_error(f32.read(), rms_norm_reference(gathered, weight, 1e-5)) < 2e-6, "the wrong rows, or values");
    CHECK(same_bits(residual.read(), x), "the residual was written");
}
