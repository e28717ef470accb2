// Tolerances as in decode_matmul/test.cu: exact products, F32 sums.
#include "../../test/matrices.h"
#include "../decode_matmul/reference.h"

using namespace harness;

TEST(prefill_matmul_is_close_to_the_reference) {
    Random random(11);
    struct Shape {
        uint32_t n_tokens, n_rows, n_cols;
    };
    const Shape shapes[] = {{1, 1, 32},    {3, 61, 36},   {64, 64, 64},     {65, 131, 84},
                            {200, 97, 42}, {130, 1152, 896}, {1, 896, 4864}, {257, 300, 160}};
    for (Shape s : shapes) {
        for (int output : {ORCD_PREFILL_STORE, ORCD_PREFILL_ADD}) {
            TestMatrix w(ORCD_FORMAT_F16, s.n_rows, s.n_cols, random, 0.05f);
            TestActivations x(s.n_tokens, s.n_cols, 0.5f, random);
            const uint32_t pitch = s.n_rows + 5;
            std::vector<float> before = random.normals((size_t)s.n_tokens * pitch), bias = random.normals(s.n_rows);
            Guarded<float> out(before), d_bias(bias);
            orcd_prefill_matmul_args a{};
            a.w[0] = static_cast<const orcd_f16 *>(w.matrix.values);
            a.w_pitch = (uint32_t)(w.matrix.row_bytes / 2);
            a.x = x.get();
            a.x_pitch = x.pitch;
            a.n_tokens = s.n_tokens;
            a.n_rows = s.n_rows;
            a.n_cols = s.n_cols;
            a.unscale[0] = 2.0f;
            a.output = output;
            a.out = out.get();
            a.out_pitch = pitch;
            a.bias = output == ORCD_PREFILL_STORE ? d_bias.get() : nullptr;
            CUDA(orcd_prefill_matmul(&a, nullptr));
            const std::vector<double> sums = matmul_reference(w.values, x.values, s.n_tokens, s.n_rows, s.n_cols);
            std::vector<double> want(before.begin(), before.end());
            for (uint32_t token = 0; token < s.n_tokens; token++)
                for (uint32_t row = 0; row < s.n_rows; row++) {
                    double &to = want[(size_t)token * pitch + row];
                    to = sums[(size_t)token * s.n_rows + row] + (output == ORCD_PREFILL_ADD ? to : bias[row]);
                }
            const double error = relative_error(out.read(), want);
            CHECK(error < 1e-5, "%u tokens, [%u, %u], output %d: off by %g", s.n_tokens, s.n_rows, s.n_cols, output, error);
        }
    }
}

TEST(prefill_matmul_gives_a_token_the_same_bits_in_any_company_and_tile) {
    Random random(12);
    // 2,100 tokens and 2,304 rows take the wide tile, fewer the narrow one.
    const uint32_t n_rows = 2304, n_cols = 896, n_tokens = 2100;
    TestMatrix w(ORCD_FORMAT_F16, n_rows, n_cols, random, 0.05f);
    TestActivations x(n_tokens, n_cols, 1.0f, random);
    auto run = [&](uint32_t first, uint32_t n) {
        Guarded<float> out((size_t)n * n_rows);
        orcd_prefill_matmul_args a{};
        a.w[0] = static_cast<const orcd_f16 *>(w.matrix.values);
        a.w_pitch = n_cols;
        a.x = x.get() + (size_t)first * x.pitch;
        a.x_pitch = x.pitch;
        a.n_tokens = n;
        a.n_rows = n_rows;
        a.n_cols = n_cols;
        a.unscale[0] = 1.0f;
        a.output = ORCD_PREFILL_STORE;
        a.out = out.get();
        a.out_pitch = n_rows;
        CUDA(orcd_prefill_matmul(&a, nullptr));
        return out.read();
    };
    const std::vector<float> all = run(0, n_tokens);
    for (uint32_t n : {1u, 7u, 64u, 300u}) {
        for (uint32_t first : {0u, 1u, 1800u}) {
            const std::vector<float> some = run(first, n);
            CHECK(std::memcmp(some.data(), all.data() + (size_t)first * n_rows, some.size() * 4) == 0,
                  "%u tokens from %u differ", n, first);
        }
    }
}

TEST(prefill_matmul_gate_up_is_close_to_the_reference_beyond_the_range_of_halves) {
    Random random(13);
    for (float deviation : {0.05f, 40.0f}) {
        for (uint32_t d_ff : {1u, 52u, 4864u}) {
            const uint32_t n_tokens = d_ff > 1000 ? 70 : 150, d_model = 84;
            TestMatrix gate(ORCD_FORMAT_F16, d_ff, d_model, random, deviation), up(ORCD_FORMAT_F16, d_ff, d_model, random, deviation);
            TestActivations x(n_tokens, d_model, 1.0f, random);
            const uint32_t pitch = (d_ff + 31) / 32 * 32;
            const float scale = deviation > 1 ? std::ldexp(1.0f, -7) : 1.0f;
            Guarded<float> scales(std::vector<float>(n_tokens, scale));
            Guarded<__half> act((size_t)n_tokens * pitch);
            orcd_prefill_matmul_args a{};
            a.w[0] = static_cast<const orcd_f16 *>(gate.matrix.values);
            a.w[1] = static_cast<const orcd_f16 *>(up.matrix.values);
            a.w_pitch = (uint32_t)(gate.matrix.row_bytes / 2);
            a.x = x.get();
            a.x_pitch = x.pitch;
            a.n_tokens = n_tokens;
            a.n_rows = d_ff;
            a.n_cols = d_model;
            a.unscale[0] = a.unscale[1] = 1.0f;
            a.output = ORCD_PREFILL_GATE_UP;
            a.act = reinterpret_cast<orcd_f16 *>(act.get());
            a.act_pitch = pitch;
            a.ffn_scale = scales.get();
            CUDA(orcd_prefill_matmul(&a, nullptr));
            const std::vector<double> g = matmul_reference(gate.values, x.values, n_tokens, d_ff, d_model);
            const std::vector<double> u = matmul_reference(up.values, x.values, n_tokens, d_ff, d_model);
            const std::vector<__half> halves = act.read();
            std::vector<double> want, got;
            for (uint32_t token = 0; token < n_tokens; token++)
                for (uint32_t i = 0; i < d_ff; i++) {
                    want.push_back(silu_reference(g[(size_t)token * d_ff + i]) * u[(size_t)token * d_ff + i]);
                    got.push_back(__half2float(halves[(size_t)token * pitch + i]) / scale);
                }
            // One rounding to 11 bits.
            CHECK(relative_error(got, want) < 4e-4, "d_ff %u: off by %g", d_ff, relative_error(got, want));
        }
    }
}
