// Weight matrices of every format, in host and device memory, for the tests of operations that read them.
#pragma once

#include "harness.h"
#include "worker_cuda.h"

#include <cuda_bf16.h>

#include <memory>

namespace harness {

inline const char *name_of(uint32_t format) {
    const char *names[] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0", "Q4_1",   "Q5_0",   "Q5_1",
                           "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"};
    return names[format];
}

inline bool is_quantised(uint32_t format) { return format >= ORCD_FORMAT_Q8_0; }

// Columns that a row is a multiple of.
inline uint32_t block_of(uint32_t format) {
    if (!is_quantised(format)) return 1;
    const bool has_supers = (format >= ORCD_FORMAT_Q2_K && format <= ORCD_FORMAT_Q6_K) || format == ORCD_FORMAT_IQ4_XS;
    return has_supers ? 256 : 32;
}

// Rounds a value to a format that is not quantised, and gives its bytes.
inline float stored(uint32_t format, float v, unsigned char *at) {
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
    return v;
}

// The planes of a random quantised matrix, and its values: by the words of `quant::planes`, a column at a time.
struct TestPlanes {
    std::vector<unsigned char> low, high, scales, supers;
    std::vector<float> values;

    TestPlanes(uint32_t format, size_t n_values, Random &random, float deviation) {
        // Bits, what is subtracted from a number, and a deviation for scales that makes values about as large as asked for.
        const struct { int low_bits, high_bits, center; float spread; } all[] = {
            {8, 0, 128, 74}, {4, 0, 8, 5}, {4, 0, 0, 5}, {4, 1, 16, 9}, {4, 1, 0, 9}, {2, 0, 0, 8}, {2, 1, 4, 40},
            {4, 0, 0, 150}, {4, 1, 0, 300}, {4, 2, 32, 1300}, {4, 0, 0, 70}, {4, 0, 0, 1300}, {4, 0, 0, 5}};
        const auto kind = all[format - ORCD_FORMAT_Q8_0];
        const float unit = deviation / kind.spread;
        low.resize(n_values / 8 * kind.low_bits);
        high.resize(n_values / 8 * kind.high_bits);
        for (size_t first = 0; first < n_values; first += 32) {
            float scale[2], offset[2];
            if (first % 256 == 0) add_supers(format, unit, random);
            add_scales(format, unit, random, scale, offset);
            for (uint32_t column = 0; column < 32; column++) {
                const int number = (int)random.below(1u << (kind.low_bits + kind.high_bits));
                put(low, first / 32, column, kind.low_bits, number & ((1 << kind.low_bits) - 1));
                if (kind.high_bits) put(high, first / 32, column, kind.high_bits, number >> kind.low_bits);
                const volatile float product = scale[column / 16] * stands_for(format, number, kind.center);
                values.push_back(has_offset(format) ? product + offset[column / 16] : (float)product);
            }
        }
    }

  private:
    float super_[2] = {0, 0};

    static bool has_offset(uint32_t format) {
        return format == ORCD_FORMAT_Q4_1 || format == ORCD_FORMAT_Q5_1 || format == ORCD_FORMAT_Q2_K || format == ORCD_FORMAT_Q4_K ||
               format == ORCD_FORMAT_Q5_K;
    }

    static float stands_for(uint32_t format, int number, int center) {
        const int iq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
        const int mxfp4[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        if (format == ORCD_FORMAT_IQ4_NL || format == ORCD_FORMAT_IQ4_XS) return (float)iq4[number];
        if (format == ORCD_FORMAT_MXFP4) return (float)mxfp4[number];
        return (float)(number - center);
    }

    static void put(std::vector<unsigned char> &plane, size_t chunk, uint32_t column, int n_bits, int number) {
        const uint32_t t = column % 16 / 4, pair = column / 16 * 2 + column % 4 / 2, second = column % 2;
        uint32_t bit = 0;
        if (n_bits == 8) bit = 64 * t + 16 * pair + 8 * second;
        if (n_bits == 4) bit = 32 * t + 4 * pair + 16 * second;
        if (n_bits == 2) bit = t / 2 * 32 + t % 2 * 8 + 2 * pair + 16 * second;
        if (n_bits == 1) bit = 4 * t + pair + 16 * second;
        plane[chunk * 4 * n_bits + bit / 8] |= (unsigned char)(number << bit % 8);
    }

    static float add_half(std::vector<unsigned char> &to, float v) {
        const __half h = __float2half_rn(v);
        uint16_t bits;
        std::memcpy(&bits, (void *)&h, 2);
        to.push_back((unsigned char)(bits & 255));
        to.push_back((unsigned char)(bits >> 8));
        return __half2float(h);
    }

    static float about(float unit, Random &random) { return unit * (0.5f + (float)random.uniform()); }

    int add_byte(uint32_t n, Random &random) {
        scales.push_back((unsigned char)random.below(n));
        return scales.back();
    }

    void add_supers(uint32_t format, float unit, Random &random) {
        if (block_of(format) != 256) return;
        super_[0] = add_half(supers, about(unit, random));
        if (has_offset(format)) super_[1] = add_half(supers, about(unit, random) * (format == ORCD_FORMAT_Q5_K ? 16 : format == ORCD_FORMAT_Q4_K ? 8 : 2));
    }

    void add_scales(uint32_t format, float unit, Random &random, float (&scale)[2], float (&offset)[2]) {
        offset[0] = offset[1] = 0;
        switch (format) {
            case ORCD_FORMAT_Q2_K:
                for (int group = 0; group < 2; group++) {
                    const int both = add_byte(256, random);
                    scale[group] = super_[0] * (float)(both & 15);
                    offset[group] = -(super_[1] * (float)(both >> 4));
                }
                return;
            case ORCD_FORMAT_Q3_K:
                for (float &s : scale) s = super_[0] * (float)(add_byte(64, random) - 32);
                return;
            case ORCD_FORMAT_Q6_K:
                for (float &s : scale) s = super_[0] * (float)(add_byte(256, random) - 128);
                return;
            case ORCD_FORMAT_Q4_K:
            case ORCD_FORMAT_Q5_K:
                scale[0] = super_[0] * (float)add_byte(64, random);
                offset[0] = -(super_[1] * (float)add_byte(64, random));
                break;
            case ORCD_FORMAT_IQ4_XS: scale[0] = super_[0] * (float)(add_byte(64, random) - 32); break;
            case ORCD_FORMAT_MXFP4: {
                int exponent = 0;
                std::frexp(unit, &exponent);
                scales.push_back((unsigned char)(128 + exponent - random.below(3)));
                scale[0] = std::ldexp(1.0f, scales.back() - 128);
                break;
            }
            default:
                scale[0] = add_half(scales, about(unit, random) * (random.below(2) ? 1.0f : -1.0f));
                if (has_offset(format)) offset[0] = add_half(scales, -8 * about(unit, random));
        }
        scale[1] = scale[0];
        offset[1] = offset[0];
    }
};

// A random matrix: `values` are exactly what its bytes say.
struct TestMatrix {
    orcd_matrix matrix{};
    std::vector<float> values;  // [n_rows, n_cols]
    std::unique_ptr<Guarded<unsigned char>> bytes, high, scales, supers;

    TestMatrix(uint32_t format, uint32_t n_rows, uint32_t n_cols, Random &random, float deviation = 1.0f) {
        matrix.n_rows = n_rows;
        matrix.n_cols = n_cols;
        matrix.format = format;
        if (is_quantised(format))
            make_planes(random, deviation);
        else
            make_values(random, deviation);
        float largest = 0;
        for (float v : values) largest = std::fmax(largest, std::fabs(v));
        int exponent = 0;
        std::frexp(largest, &exponent);
        matrix.scale = format == ORCD_FORMAT_F16 ? 1.0f : std::ldexp(1.0f, 15 - exponent);
    }

  private:
    void make_values(Random &random, float deviation) {
        const uint32_t padded = (matrix.n_cols + ORCD_CHUNK - 1) / ORCD_CHUNK * ORCD_CHUNK;
        const size_t value_bytes = matrix.format == ORCD_FORMAT_F32 ? 4 : 2;
        matrix.row_bytes = padded * value_bytes;
        std::vector<unsigned char> host(matrix.n_rows * matrix.row_bytes, 0);
        for (uint32_t row = 0; row < matrix.n_rows; row++)
            for (uint32_t i = 0; i < matrix.n_cols; i++)
                values.push_back(stored(matrix.format, random.normal(deviation), &host[row * matrix.row_bytes + i * value_bytes]));
        bytes.reset(new Guarded<unsigned char>(host));
        matrix.values = bytes->get();
    }

    void make_planes(Random &random, float deviation) {
        const TestPlanes planes(matrix.format, (size_t)matrix.n_rows * matrix.n_cols, random, deviation);
        values = planes.values;
        matrix.row_bytes = planes.low.size() / matrix.n_rows;
        auto keep = [](std::unique_ptr<Guarded<unsigned char>> &to, const std::vector<unsigned char> &plane) -> const void * {
            if (plane.empty()) return nullptr;
            to.reset(new Guarded<unsigned char>(plane));
            return to->get();
        };
        matrix.values = keep(bytes, planes.low);
        matrix.high = keep(high, planes.high);
        matrix.scales = keep(scales, planes.scales);
        matrix.supers = keep(supers, planes.supers);
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
