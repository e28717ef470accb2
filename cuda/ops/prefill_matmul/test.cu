// Tolerances as in decode_matmul/test.cu: exact products, F32 sums.
//
// ORCD_TIMES=1 op-tests prefill_matmul_times prints what each path and tile takes for the reference model's shapes.
#include "../../test/matrices.h"
#include "../decode_matmul/reference.h"

using namespace harness;

namespace {

constexpr uint32_t kTile0 = ORCD_PREFILL_WGMMA_TILE_0;
constexpr uint32_t kNarrow = kTile0, kHuge = kTile0 + 4;  // the first; the one that only GATE_UP has

orcd_prefill_matmul_args arguments(const TestMatrix &w, const TestActivations &x, uint32_t first_token,
                                   uint32_t n_tokens) {
    orcd_prefill_matmul_args a{};
    a.w[0] = static_cast<const orcd_f16 *>(w.matrix.values);
    a.w_pitch = (uint32_t)(w.matrix.row_bytes / 2);
    a.x = x.get() + (size_t)first_token * x.pitch;
    a.x_pitch = x.pitch;
    a.n_tokens = n_tokens;
    a.n_rows = (uint32_t)w.matrix.n_rows;
    a.n_cols = (uint32_t)w.matrix.n_cols;
    a.unscale[0] = a.unscale[1] = 1.0f;
    return a;
}

bool has_wgmma() {
    static const bool has = [] {
        Random random(1);
        TestMatrix w(ORCD_FORMAT_F16, 1, 32, random);
        TestActivations x(1, 32, 1.0f, random);
        Guarded<float> out(1);
        orcd_prefill_matmul_args a = arguments(w, x, 0, 1);
        a.out = out.get();
        a.out_pitch = 1;
        a.path = ORCD_PREFILL_WGMMA;
        const int32_t status = orcd_prefill_matmul(&a, nullptr);
        if (status == (int32_t)cudaErrorNotSupported) {
            std::printf("  no wgmma here: this device, or what was compiled for it, lacks it\n");
            return false;
        }
        CUDA(status);
        CUDA(cudaDeviceSynchronize());
        return true;
    }();
    return has;
}

// Those that an output has on this device.
std::vector<uint32_t> paths(uint32_t output) {
    std::vector<uint32_t> all = {ORCD_PREFILL_AUTO, ORCD_PREFILL_MMA};
    if (!has_wgmma()) return all;
    const uint32_t last = output == ORCD_PREFILL_GATE_UP ? kHuge : kHuge - 1;
    for (uint32_t path = ORCD_PREFILL_WGMMA; path <= last; path++) all.push_back(path);
    return all;
}

std::vector<float> powers_of_two(uint32_t n, Random &random) {
    std::vector<float> out(n);
    for (float &x : out) x = std::ldexp(1.0f, (int)random.below(9) - 4);
    return out;
}

}  // namespace

TEST(prefill_matmul_is_close_to_the_reference) {
    Random random(11);
    struct Shape {
        uint32_t n_tokens, n_rows, n_cols;
    };
    // Columns padded to an odd number of 32 end in half a step of the ring.
    const Shape shapes[] = {{1, 1, 32},    {3, 61, 36},      {64, 64, 64},   {65, 131, 84},
                            {200, 97, 42}, {130, 1152, 896}, {1, 896, 4864}, {257, 300, 160},
                            {129, 98, 96}, {300, 161, 20},   {70, 66, 992},  {2100, 200, 96}};
    uint32_t surplus = 4;
    for (Shape s : shapes) {
        for (uint32_t output : {ORCD_PREFILL_STORE, ORCD_PREFILL_ADD}) {
            TestMatrix w(ORCD_FORMAT_F16, s.n_rows, s.n_cols, random, 0.05f);
            TestActivations x(s.n_tokens, s.n_cols, 0.5f, random);
            const uint32_t pitch = s.n_rows + surplus;
            surplus ^= 1;  // pairs that may be written together, and pairs that may not
            const std::vector<float> before = random.normals((size_t)s.n_tokens * pitch),
                                     bias = random.normals(s.n_rows);
            const std::vector<float> row_unscale = powers_of_two(s.n_tokens, random);
            const std::vector<double> products = matmul_reference(w.values, x.values, s.n_tokens, s.n_rows, s.n_cols);
            std::vector<double> want(before.begin(), before.end()), sums = products;
            for (uint32_t token = 0; token < s.n_tokens; token++)
                for (uint32_t row = 0; row < s.n_rows; row++) {
                    double &to = want[(size_t)token * pitch + row], &sum = sums[(size_t)token * s.n_rows + row];
                    if (output == ORCD_PREFILL_ADD) sum *= row_unscale[token];
                    to = sum + (output == ORCD_PREFILL_ADD ? to : bias[row]);
                }
            Guarded<float> d_bias(bias), d_row_unscale(row_unscale);
            for (uint32_t path : paths(output)) {
                Guarded<float> out(before), probe((size_t)s.n_tokens * s.n_rows);
                orcd_prefill_matmul_args a = arguments(w, x, 0, s.n_tokens);
                a.unscale[0] = 2.0f;
                a.output = output;
                a.out = out.get();
                a.out_pitch = pitch;
                if (output == ORCD_PREFILL_STORE) a.bias = d_bias.get();
                if (output == ORCD_PREFILL_ADD) {
                    a.row_unscale = d_row_unscale.get();
                    a.probe = probe.get();
                }
                a.path = path;
                CUDA(orcd_prefill_matmul(&a, nullptr));
                const double error = relative_error(out.read(), want);
                CHECK(error < 1e-5, "%u tokens, [%u, %u], output %u, path %u: off by %g", s.n_tokens, s.n_rows,
                      s.n_cols, output, path, error);
                if (output == ORCD_PREFILL_ADD) {
                    const double probe_error = relative_error(probe.read(), sums);
                    CHECK(probe_error < 1e-5, "%u tokens, [%u, %u], path %u: probe off by %g", s.n_tokens, s.n_rows,
                          s.n_cols, path, probe_error);
                }
            }
        }
    }
}

namespace {

// out of STORE, for tokens first..first + n.
std::vector<float> stored(const TestMatrix &w, const TestActivations &x, uint32_t first, uint32_t n, uint32_t path) {
    Guarded<float> out((size_t)n * w.matrix.n_rows);
    orcd_prefill_matmul_args a = arguments(w, x, first, n);
    a.output = ORCD_PREFILL_STORE;
    a.out = out.get();
    a.out_pitch = a.n_rows;
    a.path = path;
    CUDA(orcd_prefill_matmul(&a, nullptr));
    return out.read();
}

bool is_part(const std::vector<float> &some, const std::vector<float> &all, uint32_t first, uint32_t n_rows) {
    return std::memcmp(some.data(), all.data() + (size_t)first * n_rows, some.size() * 4) == 0;
}

// The paths whose bits have to be the same as those of `path`.
std::vector<uint32_t> kin(uint32_t path, uint32_t output) {
    std::vector<uint32_t> all;
    for (uint32_t other : paths(output)) {
        if (other != ORCD_PREFILL_AUTO && (other == ORCD_PREFILL_MMA) == (path == ORCD_PREFILL_MMA))
            all.push_back(other);
    }
    return all;
}

std::vector<uint32_t> families() {
    std::vector<uint32_t> all = {ORCD_PREFILL_MMA};
    if (has_wgmma()) all.push_back(kNarrow);
    return all;
}

}  // namespace

TEST(prefill_matmul_gives_a_token_the_same_bits_in_any_company_and_tile) {
    Random random(12);
    // 2,100 tokens and 2,304 rows take the wide tile of mma.sync, fewer the narrow one.
    const uint32_t n_rows = 2304, n_cols = 896, n_tokens = 2100;
    TestMatrix w(ORCD_FORMAT_F16, n_rows, n_cols, random, 0.05f);
    TestActivations x(n_tokens, n_cols, 1.0f, random);
    for (uint32_t family : families()) {
        const std::vector<float> all = stored(w, x, 0, n_tokens, family);
        for (uint32_t path : kin(family, ORCD_PREFILL_STORE)) {
            CHECK(same_bits(stored(w, x, 0, n_tokens, path), all), "path %u differs from path %u", path, family);
            for (uint32_t n : {1u, 7u, 64u, 300u}) {
                if (few_cases() && n != 7) continue;
                for (uint32_t first : {0u, 1u, 1800u})
                    CHECK(is_part(stored(w, x, first, n, path), all, first, n_rows),
                          "%u tokens from %u differ, path %u", n, first, path);
            }
        }
    }
}

TEST(prefill_matmul_gives_a_token_the_same_bits_among_any_number) {
    Random random(14);
    const uint32_t n_rows = 200, n_cols = 160, n_tokens = 300;
    TestMatrix w(ORCD_FORMAT_F16, n_rows, n_cols, random, 0.05f);
    TestActivations x(n_tokens, n_cols, 1.0f, random);
    for (uint32_t family : families()) {
        const uint32_t path = family == ORCD_PREFILL_MMA ? family : (uint32_t)ORCD_PREFILL_WGMMA;
        const std::vector<float> all = stored(w, x, 0, n_tokens, family);
        for (uint32_t n = 1; n <= n_tokens; n += few_cases() ? 23 : 1)
            CHECK(is_part(stored(w, x, n_tokens - n, n, path), all, n_tokens - n, n_rows), "%u tokens differ, path %u",
                  n, path);
    }
}

TEST(prefill_matmul_gate_up_is_close_to_the_reference_beyond_the_range_of_halves) {
    Random random(13);
    for (float deviation : {0.05f, 40.0f}) {
        for (uint32_t d_ff : {1u, 52u, 161u, 4864u}) {
            const uint32_t n_tokens = d_ff > 1000 ? 70 : d_ff == 161 ? 600 : 150, d_model = 84;
            TestMatrix gate(ORCD_FORMAT_F16, d_ff, d_model, random, deviation),
                up(ORCD_FORMAT_F16, d_ff, d_model, random, deviation);
            TestActivations x(n_tokens, d_model, 1.0f, random);
            const float scale = deviation > 1 ? std::ldexp(1.0f, -7) : 1.0f;
            const std::vector<double> g = matmul_reference(gate.values, x.values, n_tokens, d_ff, d_model);
            const std::vector<double> u = matmul_reference(up.values, x.values, n_tokens, d_ff, d_model);
            std::vector<double> want;
            for (size_t i = 0; i < g.size(); i++) want.push_back(silu_reference(g[i]) * u[i]);
            Guarded<float> scales(std::vector<float>(n_tokens, scale));
            for (uint32_t path : paths(ORCD_PREFILL_GATE_UP)) {
                // 4 halves may be written together where the pitch allows it.
                const uint32_t pitch = path % 2 ? (d_ff + 31) / 32 * 32 : d_ff + 1;
                Guarded<__half> act((size_t)n_tokens * pitch);
                Guarded<float> probe((size_t)n_tokens * d_ff);
                orcd_prefill_matmul_args a = arguments(gate, x, 0, n_tokens);
                a.w[1] = static_cast<const orcd_f16 *>(up.matrix.values);
                a.output = ORCD_PREFILL_GATE_UP;
                a.act = reinterpret_cast<orcd_f16 *>(act.get());
                a.act_pitch = pitch;
                a.ffn_scale = scales.get();
                a.probe = probe.get();
                a.path = path;
                CUDA(orcd_prefill_matmul(&a, nullptr));
                const std::vector<__half> halves = act.read();
                std::vector<double> got;
                size_t n_beyond = 0;
                for (uint32_t token = 0; token < n_tokens; token++)
                    for (uint32_t i = 0; i < pitch; i++) {
                        const __half h = halves[(size_t)token * pitch + i];
                        if (i < d_ff) got.push_back(__half2float(h) / scale);
                        uint16_t bits;
                        std::memcpy(&bits, (const void *)&h, 2);
                        n_beyond += i >= d_ff && bits != 0xFFFF;
                    }
                // One rounding to 11 bits.
                CHECK(relative_error(got, want) < 4e-4, "d_ff %u, path %u: off by %g", d_ff, path,
                      relative_error(got, want));
                CHECK(n_beyond == 0, "d_ff %u, path %u: %zu values written beyond the rows", d_ff, path, n_beyond);
                const double probe_error = relative_error(probe.read(), want);
                CHECK(probe_error < 2e-5, "d_ff %u, path %u: probe off by %g", d_ff, path, probe_error);
            }
        }
    }
}

TEST(prefill_matmul_gate_up_gives_a_token_the_same_bits_in_any_company_and_tile) {
    Random random(15);
    const uint32_t d_ff = 1000, d_model = 896, n_tokens = 700;
    TestMatrix gate(ORCD_FORMAT_F16, d_ff, d_model, random, 0.05f), up(ORCD_FORMAT_F16, d_ff, d_model, random, 0.05f);
    TestActivations x(n_tokens, d_model, 1.0f, random);
    Guarded<float> scales(std::vector<float>(n_tokens, 1.0f));
    auto run = [&](uint32_t first, uint32_t n, uint32_t path) {
        Guarded<__half> act((size_t)n * d_ff);
        orcd_prefill_matmul_args a = arguments(gate, x, first, n);
        a.w[1] = static_cast<const orcd_f16 *>(up.matrix.values);
        a.output = ORCD_PREFILL_GATE_UP;
        a.act = reinterpret_cast<orcd_f16 *>(act.get());
        a.act_pitch = d_ff;
        a.ffn_scale = scales.get();
        a.path = path;
        CUDA(orcd_prefill_matmul(&a, nullptr));
        return act.read();
    };
    for (uint32_t family : families()) {
        const std::vector<__half> all = run(0, n_tokens, family);
        for (uint32_t path : kin(family, ORCD_PREFILL_GATE_UP)) {
            CHECK(same_bits(run(0, n_tokens, path), all), "path %u differs from path %u", path, family);
            for (uint32_t n : {1u, 65u, 300u}) {
                const std::vector<__half> some = run(400, n, path);
                CHECK(std::memcmp((const void *)some.data(), (const void *)(all.data() + (size_t)400 * d_ff),
                                  some.size() * 2) == 0,
                      "%u tokens differ, path %u", n, path);
            }
        }
    }
}

TEST(prefill_matmul_refuses_a_tile_that_an_output_lacks) {
    if (!has_wgmma()) return;
    Random random(16);
    TestMatrix w(ORCD_FORMAT_F16, 8, 32, random);
    TestActivations x(8, 32, 1.0f, random);
    Guarded<float> out(64);
    orcd_prefill_matmul_args a = arguments(w, x, 0, 8);
    a.out = out.get();
    a.out_pitch = 8;
    for (uint32_t path : {kHuge, kHuge + 1, UINT32_MAX}) {
        a.path = path;
        const int32_t status = orcd_prefill_matmul(&a, nullptr);
        CHECK(status == (int32_t)cudaErrorInvalidValue, "path %u: %d", path, status);
    }
}

TEST(prefill_matmul_times) {
    if (!std::getenv("ORCD_TIMES")) return;
    struct Shape {
        const char *name;
        uint32_t output, n_rows, n_cols;
    };
    const Shape shapes[] = {{"qkv", ORCD_PREFILL_STORE, 1152, 896},
                            {"o", ORCD_PREFILL_ADD, 896, 896},
                            {"gate/up", ORCD_PREFILL_GATE_UP, 4864, 896},
                            {"down", ORCD_PREFILL_ADD, 896, 4864}};
    constexpr size_t kWeights = 80u << 20, kMaxTokens = 2048;  // halves: more than L2 holds
    constexpr int kRuns = 50;
    Random random(17);
    std::vector<__half> some = to_half(random.normals(1 << 20, 0.05f));
    Guarded<__half> w(kWeights), x(kMaxTokens * 4864), act(kMaxTokens * 4864);
    for (Guarded<__half> *to : {&w, &x})
        for (size_t at = 0; at < to->size(); at += some.size())
            CUDA(cudaMemcpy(to->get() + at, some.data(), std::min(some.size(), to->size() - at) * 2,
                            cudaMemcpyHostToDevice));
    Guarded<float> out(std::vector<float>(kMaxTokens * 1152, 0.0f)), ones(std::vector<float>(kMaxTokens, 1.0f));
    cudaEvent_t start, end;
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&end));
    for (const Shape &s : shapes) {
        for (uint32_t n_tokens : {128u, 512u, 2048u}) {
            const size_t n_matrix = (size_t)s.n_rows * s.n_cols,
                         n_each = n_matrix * (s.output == ORCD_PREFILL_GATE_UP ? 2 : 1);
            std::printf("  %-8s %4u tokens, us:", s.name, n_tokens);
            for (uint32_t path : paths(s.output)) {
                orcd_prefill_matmul_args a{};
                a.w_pitch = a.x_pitch = a.n_cols = s.n_cols;
                a.x = reinterpret_cast<const orcd_f16 *>(x.get());
                a.n_tokens = n_tokens;
                a.n_rows = a.out_pitch = a.act_pitch = s.n_rows;
                a.unscale[0] = a.unscale[1] = 1.0f;
                a.output = s.output;
                a.out = out.get();
                a.act = reinterpret_cast<orcd_f16 *>(act.get());
                a.ffn_scale = ones.get();
                a.path = path;
                for (int run = -5; run < kRuns; run++) {
                    if (run == 0) CUDA(cudaEventRecord(start));
                    const size_t at =
                        (size_t)(run + 5) % (kWeights / n_each) * n_each;  // weights come from memory, as they do
                    a.w[0] = reinterpret_cast<const orcd_f16 *>(w.get() + at);
                    a.w[1] = reinterpret_cast<const orcd_f16 *>(w.get() + at + (n_each - n_matrix));
                    CUDA(orcd_prefill_matmul(&a, nullptr));
                }
                CUDA(cudaEventRecord(end));
                CUDA(cudaEventSynchronize(end));
                float ms = 0;
                CUDA(cudaEventElapsedTime(&ms, start, end));
                std::printf("  path %u %.1f", path, ms * 1000 / kRuns);
            }
            std::printf("\n");
        }
    }
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(end));
}
