// Runs the operations' tests: all, or those whose names contain an argument.
//
// Exit status: 0 all passed (or no GPU, and none required), 1 a test failed, 2 a CUDA error, 3 a GPU is required and there is none.
#include "harness.h"

int main(int argc, char **argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
    int n_devices = 0;
    cudaError_t status = cudaGetDeviceCount(&n_devices);
    if (status != cudaSuccess || n_devices == 0) {
        const char *required = std::getenv("WORKER_REQUIRE_GPU");
        bool fails = required && std::strcmp(required, "1") == 0;
        std::printf("%s: no GPU (%s)\n", fails ? "FAILED" : "SKIPPED", cudaGetErrorString(status));
        return fails ? 3 : 0;
    }
    int n_passed = 0, n_failed = 0;
    for (const harness::Case &c : harness::cases()) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted |= std::strstr(c.name, argv[i]) != nullptr;
        if (!wanted) continue;
        int before = harness::failures();
        c.body();
        CUDA(cudaDeviceSynchronize());
        bool passed = harness::failures() == before;
        std::printf("test %s ... %s\n", c.name, passed ? "ok" : "FAILED");
        (passed ? n_passed : n_failed)++;
    }
    std::printf("test result: %s. %d passed; %d failed;\n", n_failed ? "FAILED" : "ok", n_passed, n_failed);
    return n_failed ? 1 : 0;
}
