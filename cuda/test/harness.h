// What every operation's test uses: named cases, device arrays with guard bands, random values, closeness.
//
//   TEST(rms_norm_is_close_to_the_reference) { ... CHECK(error < 1e-6, "off by %g", error); }
//
// An array that a kernel writes is made with `Guarded`: it starts out full of NaN (or 0xFF bytes), lies between two bands of a known
// pattern, and is read back with `read()`, which fails the test if a band was touched.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace harness {

struct Case {
    const char *name;
    void (*body)();
};

inline std::vector<Case> &cases() {
    static std::vector<Case> all;
    return all;
}

inline int &failures() {
    static int n = 0;
    return n;
}

struct Register {
    Register(const char *name, void (*body)()) { cases().push_back({name, body}); }
};

#define TEST(name)                                       \
    static void name();                                  \
    static harness::Register register_##name(#name, name); \
    static void name()

// Whether a test is to take few of its many cases that differ in numbers alone: under compute-sanitizer a launch takes up to a
// thousand times as long. The paths through the kernels stay the same.
inline bool few_cases() {
    static const bool few = [] {
        const char *value = std::getenv("ORCD_FEW_CASES");
        return value && std::strcmp(value, "1") == 0;
    }();
    return few;
}

// Fails the running test, with a message, and goes on: one run shows every fault.
#define CHECK(condition, ...)                                          \
    do {                                                               \
        if (!(condition)) {                                            \
            std::printf("  %s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::printf(__VA_ARGS__);                                  \
            std::printf("\n");                                         \
            harness::failures()++;                                     \
        }                                                              \
    } while (0)

// Ends the program on a CUDA error: nothing after it would mean anything.
#define CUDA(call)                                                                                           \
    do {                                                                                                     \
        cudaError_t status_ = (cudaError_t)(call);                                                           \
        if (status_ != cudaSuccess) {                                                                        \
            std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_));          \
            std::exit(2);                                                                                    \
        }                                                                                                    \
    } while (0)

// PCG32 (O'Neill 2014): the same numbers everywhere.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 6364136223846793005ull + 1442695040888963407ull) { next(); }
    uint32_t next() {
        uint64_t old = state_;
        state_ = old * 6364136223846793005ull + 1442695040888963407ull;
        uint32_t shifted = (uint32_t)(((old >> 18) ^ old) >> 27), turn = (uint32_t)(old >> 59);
        return (shifted >> turn) | (shifted << ((32 - turn) & 31));
    }
    uint32_t below(uint32_t n) { return next() % n; }
    double uniform() { return (next() + 0.5) / 4294967296.0; }
    // Normal with mean 0 (Box-Muller).
    float normal(float deviation = 1.0f) {
        return deviation * (float)(std::sqrt(-2.0 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()));
    }
    std::vector<float> normals(size_t n, float deviation = 1.0f) {
        std::vector<float> out(n);
        for (float &x : out) x = normal(deviation);
        return out;
    }

  private:
    uint64_t state_;
};

inline std::vector<__half> to_half(const std::vector<float> &values) {
    std::vector<__half> out(values.size());
    for (size_t i = 0; i < values.size(); i++) out[i] = __float2half_rn(values[i]);
    return out;
}

inline std::vector<float> to_float(const std::vector<__half> &values) {
    std::vector<float> out(values.size());
    for (size_t i = 0; i < values.size(); i++) out[i] = __half2float(values[i]);
    return out;
}

// A device array between two guard bands. Memory starts out as 0xFF bytes, which is NaN in every float format.
template <class T> class Guarded {
  public:
    explicit Guarded(size_t n) : n_(n) {
        CUDA(cudaMalloc(&base_, bytes()));
        CUDA(cudaMemset(base_, 0xFF, bytes()));
        CUDA(cudaMemset(base_, kPattern, kBand));
        CUDA(cudaMemset(base_ + kBand + n_ * sizeof(T), kPattern, kBand));
    }
    explicit Guarded(const std::vector<T> &values) : Guarded(values.size()) {
        CUDA(cudaMemcpy(get(), values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    Guarded(const Guarded &) = delete;
    Guarded &operator=(const Guarded &) = delete;
    ~Guarded() { cudaFree(base_); }

    T *get() const { return reinterpret_cast<T *>(base_ + kBand); }
    size_t size() const { return n_; }
    std::vector<T> read() const {
        CUDA(cudaDeviceSynchronize());
        std::vector<unsigned char> all(bytes());
        CUDA(cudaMemcpy(all.data(), base_, bytes(), cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < kBand; i++) {
            if (all[i] != kPattern || all[kBand + n_ * sizeof(T) + i] != kPattern) {
                CHECK(false, "a kernel wrote outside its output, %zu bytes from it", i);
                break;
            }
        }
        std::vector<T> out(n_);
        std::memcpy((void *)out.data(), all.data() + kBand, n_ * sizeof(T));
        return out;
    }

  private:
    static constexpr size_t kBand = 4096;
    static constexpr unsigned char kPattern = 0xA5;
    size_t bytes() const { return n_ * sizeof(T) + 2 * kBand; }
    size_t n_;
    unsigned char *base_ = nullptr;
};

// |got - want| / |want| in the 2-norm; infinite when anything is not a number.
template <class A, class B> double relative_error(const std::vector<A> &got, const std::vector<B> &want) {
    double error = 0, size = 0;
    if (got.size() != want.size()) return INFINITY;
    for (size_t i = 0; i < got.size(); i++) {
        double g = (double)got[i], w = (double)want[i];
        if (!std::isfinite(g)) return INFINITY;
        error += (g - w) * (g - w);
        size += w * w;
    }
    return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

template <class T> bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && std::memcmp((const void *)a.data(), (const void *)b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace harness
