// rms_norm, in plain loops and double.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

// Of each row of x: x / sqrt(mean(x^2) + eps) * weight.
inline std::vector<double> rms_norm_reference(const std::vector<double> &x, const std::vector<float> &weight, double eps) {
    const size_t d_model = weight.size();
    std::vector<double> out(x.size());
    for (size_t row = 0; row < x.size() / d_model; row++) {
        double sum = 0;
        for (size_t i = 0; i < d_model; i++) sum += x[row * d_model + i] * x[row * d_model + i];
        const double inverse = 1.0 / std::sqrt(sum / d_model + eps);
        for (size_t i = 0; i < d_model; i++) out[row * d_model + i] = x[row * d_model + i] * inverse * weight[i];
    }
    return out;
}
