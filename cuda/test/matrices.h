// Weight matrices of every format, in host and device memory, for the tests of operations that read them.
#pragma once

#include "harness.h"
#include "worker_cuda.h"

#include <cuda_bf16.h>

#include <memory>

namespace harness {

inline const char *name_of(uint32_t format) {
    const char *names[] = {"F32", "F16", "BF16", "Q8_0"};
    return names[format];
}

// A random matrix: `values` are exactly what its bytes say.
struct TestMatrix {
    orcd_matrix matrix{};
    std::vector<float> values;  // [n_rows, n_cols]
    std::unique_ptr<Guarded<unsigned char>> bytes;
    std::unique_ptr<Guarded<uint16_t>> scales;

    TestMatrix(uint32_t format, uint32_t n_rows, uint32_t n_cols, Random &random, float deviation = 1.0f) {
        const uint32_t padded = (n_cols + ORCD_CHUNK - 1) / ORCD_CHUNK * ORCD_CHUNK;
        const size_t value_bytes = format == ORCD_FORMAT_F32 ? 4 : format == ORCD_FORMAT_Q8_0 ? 1 : 2;
        std::vector<unsigned char> host(n_rows * padded * value_bytes, 0);
        std::vector<uint16_t> host_scales;
        values.resize((size_t)n_rows * n_cols);
        float largest = 0;
        for (uint32_t row = 0; row < n_rows; row++) {
            __half d = __float2half_rn(0.0f);
            for (uint32_t i = 0; i < n_cols; i++) {
                float v = random.normal(deviation);
                unsigned char *at = &host[((size_t)row * padded + i) * value_bytes];
                if (format == ORCD_FORMAT_F32) std::memcpy(at, &v, 4);
                if (format == ORCD_FORMAT_F16) {
                    __half h = __float2half_rn(v);
                    std::memcpy(at, (void *)&h, 2);
                    v = __half2float(h);
                }
                if (format == ORCD_FORMAT_BF16) {
                    __nv_bfloat16 h = __float2bfloat16_rn(v);
                    std::memcpy(at, (void *)&h, 2);
                    v = __bfloat162float(h);
                }
                if (format == ORCD_FORMAT_Q8_0) {
                    if (i % 32 == 0) {
                        d = __float2half_rn(deviation * (0.5f + (float)random.uniform()) / 40);
                        uint16_t bits;
                        std::memcpy(&bits, (void *)&d, 2);
                        host_scales.push_back(bits);
                    }
                    const int8_t q = (int8_t)((int)random.below(255) - 127);
                    std::memcpy(at, &q, 1);
                    v = __half2float(d) * q;
                }
                values[(size_t)row * n_cols + i] = v;
                largest = std::fmax(largest, std::fabs(v));
            }
        }
        bytes.reset(new Guarded<unsigned char>(host));
        matrix.values = bytes->get();
        if (format == ORCD_FORMAT_Q8_0) {
            scales.reset(new Guarded<uint16_t>(host_scales));
            matrix.scales = reinterpret_cast<orcd_f16 *>(scales->get());
        }
        matrix.row_bytes = padded * value_bytes;
        matrix.n_rows = n_rows;
        matrix.n_cols = n_cols;
        matrix.format = format;
        int exponent = 0;
        std::frexp(largest, &exponent);
        matrix.scale = format == ORCD_FORMAT_F16 ? 1.0f : std::ldexp(1.0f, 15 - exponent);
    }
};

// Activations as kernels want them: halves times `scale`, rows padded to 32 with zeros. `values` are what they stand for.
struct TestActivations {
    uint32_t pitch;
    std::vector<float> values;  // [n_tokens, n_cols]
    std::unique_ptr<Guarded<__half>> halves;

    TestActivations(uint32_t n_tokens, uint32_t n_cols, float scale, Random &random, float deviation = 1.0f) {
        pitch = (n_cols + ORCD_CHUNK - 1) / ORCD_CHUNK * ORCD_CHUNK;
        std::vector<__half> host((size_t)n_tokens * pitch, __float2half_rn(0.0f));
        values.resize((size_t)n_tokens * n_cols);
        for (uint32_t token = 0; token < n_tokens; token++) {
            for (uint32_t i = 0; i < n_cols; i++) {
                const __half h = __float2half_rn(random.normal(deviation) * scale);
                host[(size_t)token * pitch + i] = h;
                values[(size_t)token * n_cols + i] = __half2float(h) / scale;
            }
        }
        halves.reset(new Guarded<__half>(host));
    }
    const orcd_f16 *get() const { return reinterpret_cast<const orcd_f16 *>(halves->get()); }
};

}  // namespace harness
