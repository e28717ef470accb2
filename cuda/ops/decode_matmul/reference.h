// decode_matmul and prefill_matmul, in plain loops and double.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

// out[token, row] = sum over k of w[row, k] x[token, k]
inline std::vector<double> matmul_reference(const std::vector<float> &w, const std::vector<float> &x, uint32_t n_tokens,
                                            uint32_t n_rows, uint32_t n_cols) {
    std::vector<double> out((size_t)n_tokens * n_rows);
    for (uint32_t token = 0; token < n_tokens; token++) {
        for (uint32_t row = 0; row < n_rows; row++) {
            double sum = 0;
            for (uint32_t k = 0; k < n_cols; k++)
                sum += (double)w[(size_t)row * n_cols + k] * x[(size_t)token * n_cols + k];
            out[(size_t)token * n_rows + row] = sum;
        }
    }
    return out;
}

inline double silu_reference(double x) { return x / (1.0 + std::exp(-x)); }

// Turns a head's values in place, by `position * inv_freq[i]` radians.
inline void rope_reference(double *head, uint32_t n_rope, bool adjacent, double position, const std::vector<double> &inv_freq) {
    for (uint32_t i = 0; i < n_rope / 2; i++) {
        const uint32_t a = adjacent ? 2 * i : i, b = adjacent ? 2 * i + 1 : i + n_rope / 2;
        const double x = head[a], y = head[b], angle = position * inv_freq[i];
        head[a] = x * std::cos(angle) - y * std::sin(angle);
        head[b] = x * std::sin(angle) + y * std::cos(angle);
    }
}
