// What Hopper has of its own (sm_90a): matrix instructions of four warps that read shared memory themselves, copies of
// tiles by tensor map, and the barriers in shared memory that both report to. One PTX instruction each.
//
// Source: PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix Instructions", "cp.async.bulk.tensor", "mbarrier".
#pragma once

#include <cuda.h>

#include <cstdint>

// Set where the code for these instructions is being compiled. Elsewhere a kernel that needs them has an empty body.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ORCD_HOPPER 1
#endif

namespace orcd {

// ---- Barriers in shared memory. Addresses are those of this block's window (shared_address); a block of a cluster is
// named by its rank. A barrier's phases alternate; it is waited for by the parity of the phase that has to be over.
// Arriving and waiting order what threads of a block did, and copies and matrix instructions in any block of the
// cluster, which is all that is asked of them here; of the cluster's scope they would also write back and drop the
// first-level cache each time.

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals) : "memory");
}

// After barrier_init, before others of the cluster (or the copy engine) use them.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and has the phase wait for `bytes` more of copies.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the same barrier of block `rank` of the cluster.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t done = 0;
    while (!done) {
        asm volatile(
            "{\n"
            ".reg .pred over;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
            "selp.u32 %0, 1, 0, over;\n"
            "}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

// All threads of all blocks of the cluster. It orders barriers that were made and fenced before it, not writes to
// memory.
__device__ __forceinline__ void cluster_sync_barriers() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// ---- Copies of tiles. `map` lies in a kernel's __grid_constant__ parameters. What lies outside the tensor arrives as
// zeros.

__device__ __forceinline__ void tile_prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The box at (column, row) to `to`; its bytes count at `barrier`.
__device__ __forceinline__ void tile_copy(uint32_t to, const CUtensorMap *map, uint32_t column, uint32_t row,
                                          uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// The same for all blocks in `blocks`, a bit for each rank: to the same place, and the same barrier, of each.
__device__ __forceinline__ void tile_copy_to(uint16_t blocks, uint32_t to, const CUtensorMap *map, uint32_t column,
                                             uint32_t row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
        : "memory");
}

// ---- Registers of a thread, from here on. All four warps of a group execute it; the kernel has to have launch bounds.

template <int N> __device__ __forceinline__ void set_registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ __forceinline__ void set_registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- Matrix instructions of four warps.

// An operand in shared memory, for the matrix instructions: rows of 64 halves (128 bytes), eight rows' 1,024 bytes
// after the other, aligned to 1,024, the 16-byte pieces of row r in order (piece ^ r % 8): what a copy with
// CU_TENSOR_MAP_SWIZZLE_128B leaves.
//
// Bits 0-13: address / 16; 16-29: unused with this layout; 32-45: bytes from eight rows to the next eight, / 16; 62-63:
// 1 for 128-byte swizzle. The swizzle is a function of the address (bits 4-6 ^= bits 7-9), so the 16 halves from column
// 16 k on start 32 k bytes, an addition of 2 k, further on.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address) {
    return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
constexpr uint64_t kOperandStep = 2;

// Registers and shared memory, as written up to here, are what the instructions after it see.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// After wgmma_wait: keeps the compiler from reading sums before it.
template <int N> __device__ __forceinline__ void wgmma_landed(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define ORCD_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define ORCD_D16(i) ORCD_D4(i), ORCD_D4((i) + 4), ORCD_D4((i) + 8), ORCD_D4((i) + 12)
#define ORCD_WGMMA_HEAD(adds, n) \
    "{\n.reg .pred adds;\nsetp.ne.b32 adds, %" adds ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32.f16.f16 {"
#define ORCD_WGMMA_TAIL(a, b) "}, %" a ", %" b ", adds, 1, 1, 0, 0;\n}"

// d[64, N] = (adds ? d : 0) + a[64, 16] * b[N, 16]^T, F16 operands in shared memory, F32 sums; done after wgmma_wait.
//
// With thread = 32 w + 4 g + t of the four warps: d[4 j] and d[4 j + 1] are (row 16 w + g, columns 8 j + 2 t and one
// more), d[4 j + 2] and d[4 j + 3] the same of row 16 w + g + 8.
template <int N> __device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds);

template <> __device__ __forceinline__ void wgmma<64>(float (&d)[32], uint64_t a, uint64_t b, bool adds) {
    asm volatile(
        ORCD_WGMMA_HEAD("34", "64")
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
        ORCD_WGMMA_TAIL("32", "33")
        : ORCD_D16(0), ORCD_D16(16)
        : "l"(a), "l"(b), "r"((int)adds));
}

template <> __device__ __forceinline__ void wgmma<96>(float (&d)[48], uint64_t a, uint64_t b, bool adds) {
    asm volatile(
        ORCD_WGMMA_HEAD("50", "96")
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
        ORCD_WGMMA_TAIL("48", "49")
        : ORCD_D16(0), ORCD_D16(16), ORCD_D16(32)
        : "l"(a), "l"(b), "r"((int)adds));
}

template <> __device__ __forceinline__ void wgmma<128>(float (&d)[64], uint64_t a, uint64_t b, bool adds) {
    asm volatile(
        ORCD_WGMMA_HEAD("66", "128")
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
        ORCD_WGMMA_TAIL("64", "65")
        : ORCD_D16(0), ORCD_D16(16), ORCD_D16(32), ORCD_D16(48)
        : "l"(a), "l"(b), "r"((int)adds));
}

template <> __device__ __forceinline__ void wgmma<160>(float (&d)[80], uint64_t a, uint64_t b, bool adds) {
    asm volatile(
        ORCD_WGMMA_HEAD("82", "160")
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
        ORCD_WGMMA_TAIL("80", "81")
        : ORCD_D16(0), ORCD_D16(16), ORCD_D16(32), ORCD_D16(48), ORCD_D16(64)
        : "l"(a), "l"(b), "r"((int)adds));
}

#undef ORCD_D4
#undef ORCD_D16
#undef ORCD_WGMMA_HEAD
#undef ORCD_WGMMA_TAIL

}  // namespace orcd
