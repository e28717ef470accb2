// Runs the operations' tests: all, or those whose names contain an argument; with `--shard I/N` every N-th of them, from the
// I-th on, so that N processes do all of them together.
//
// Exit status: 0 all passed (or no GPU, and none required), 1 a test failed, 2 a CUDA error
// or a shard that is none, 3 a GPU is required and there is none.
#include "harness.h"

int main(int argc, char **argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
    unsigned shard = 1, n_shards = 1;
    if (argc > 1 && std::strcmp(argv[1], "--shard") == 0) {
        char rest = 0;
        if (argc < 3 || std::sscanf(argv[2], "%u/%u%c", &shard, &n_shards, &rest) != 2 || shard < 1 || shard > n_shards) {
            std::printf("FAILED: --shard needs I/N, with I from 1 to N\n");
            return 2;
        }
        argc -= 2, argv += 2;
    }
    int n_devices = 0;
    cudaError_t status = cudaGetDeviceCount(&n_devices);
    if (status != cudaSuccess || n_devices == 0) {
        const char *required = std::getenv("WORKER_REQUIRE_GPU");
        bool fails = required && std::strcmp(required, "1") == 0;
        std::printf("%s: no GPU (%s)\n", fails ? "FAILED" : "SKIPPED", cudaGetErrorString(status));
        return fails ? 3 : 0;
    }
    int n_passed = 0, n_failed = 0;
    unsigned n_wanted = 0;
    for (const harness::Case &c : harness::cases()) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted |= std::strstr(c.name, argv[i]) != nullptr;
        if (!wanted || n_wanted++ % n_shards != shard - 1) continue;
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
