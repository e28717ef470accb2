//! How long a context may be and how much memory keys and values get, from what was asked for and what there is.

use crate::memory;

/// Contexts and pools are whole blocks.
const BLOCK_TOKENS: u64 = transformer::BLOCK_TOKENS as u64;

/// The memory that weights, keys and values, and the rest have to fit into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// For messages: `memory`.
    pub(crate) name: &'static str,
    /// Bytes that may still be taken; `None` where nobody knows.
    pub(crate) available_bytes: Option<u64>,
    /// Of these, bytes that neither weights nor pool may have.
    pub(crate) reserved_bytes: u64,
    /// The KV pool takes no more than this unless asked to...
    pub(crate) default_kv_bytes: u64,
    /// ...nor more than so many tenths of what the weights leave.
    pub(crate) default_kv_tenths: u64,
}

impl Room {
    /// This machine's memory. 1 GiB of keys and values is enough for 8 contexts of 10,000 tokens of a model of half a
    /// billion parameters, and small beside what a machine that runs a model has.
    pub(crate) fn of_machine() -> Self {
        Self {
            name: "memory",
            available_bytes: memory::available_bytes(),
            reserved_bytes: 0,
            default_kv_bytes: 1 << 30,
            default_kv_tenths: 5,
        }
    }

    /// A GPU's memory, of which nobody expects it to be left for others. 16 GiB of keys and values are enough for 256
    /// contexts of 5,000 tokens of a model of half a billion parameters, or of 500 tokens of one of eight billion.
    #[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "a build without CUDA has no GPU"))]
    pub(crate) fn of_gpu(free_bytes: u64, reserved_bytes: u64) -> Self {
        Self {
            name: "GPU memory",
            available_bytes: Some(free_bytes),
            reserved_bytes,
            default_kv_bytes: 16 << 30,
            default_kv_tenths: 9,
        }
    }
}

/// How large the KV pool is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// `--kv-cache-mb`, in bytes.
    Bytes(u64),
    /// Large enough for so many tokens, in whole blocks a sequence.
    Tokens(u64),
    /// What is sensible on this machine.
    Default,
}

/// What was asked for, and what there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// Bytes of one token's keys and values in all layers.
    pub(crate) bytes_per_token: u64,
    /// The longest sequence that the model was made for.
    pub(crate) model_ctx: usize,
    /// Sequences at a time.
    pub(crate) max_seqs: usize,
    /// `--ctx-size`.
    pub(crate) ctx_size: Option<usize>,
    /// How large the pool is to be.
    pub(crate) pool: Pool,
    /// Bytes of weights.
    pub(crate) weight_bytes: u64,
    /// Where all of it is to go.
    pub(crate) room: Room,
}

/// What will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvPlan {
    /// The longest sequence, in tokens.
    pub(crate) n_ctx: usize,
    /// The KV pool, in bytes: whole blocks, and at least one sequence of `n_ctx` tokens.
    pub(crate) kv_bytes: u64,
}

/// Settles context and pool.
///
/// A context that was asked for is given or refused, and so is a pool, but that it never gets more than all sequences
/// together can use. What was not asked for is made to fit.
///
/// # Errors
/// A context longer than the model's, a pool that does not hold one context, weights and pool that do not fit into
/// memory.
pub(crate) fn plan(wish: &Wish) -> anyhow::Result<KvPlan> {
    if let Some(ctx) = wish.ctx_size.filter(|ctx| *ctx > wish.model_ctx) {
        anyhow::bail!("a context of {ctx} tokens was asked for, the model was made for at most {}", wish.model_ctx);
    }
    let block_bytes = BLOCK_TOKENS * wish.bytes_per_token;
    let blocks = |tokens: usize| (tokens as u64).div_ceil(BLOCK_TOKENS);
    let longest = wish.ctx_size.unwrap_or(wish.model_ctx);
    // What every sequence together could ever use.
    let most_blocks = blocks(longest).saturating_mul(wish.max_seqs as u64);
    let n_blocks = match wish.pool {
        Pool::Bytes(bytes) => (bytes / block_bytes).min(most_blocks),
        Pool::Tokens(tokens) => tokens.div_ceil(BLOCK_TOKENS),
        Pool::Default => {
            let least_blocks = wish.ctx_size.map_or(1, blocks);
            (default_bytes(wish) / block_bytes).min(most_blocks).max(least_blocks)
        }
    };
    let pool_tokens = usize::try_from(n_blocks.saturating_mul(BLOCK_TOKENS)).unwrap_or(usize::MAX);
    let kv_bytes = n_blocks.saturating_mul(block_bytes);
    if let Pool::Bytes(asked) = wish.pool {
        let needed_blocks = wish.ctx_size.map_or(1, blocks);
        anyhow::ensure!(
            n_blocks >= needed_blocks,
            "--kv-cache-mb {} holds {pool_tokens} tokens, a context of {} needs {} MiB",
            asked >> 20,
            needed_blocks * BLOCK_TOKENS,
            needed_blocks.saturating_mul(block_bytes).div_ceil(1 << 20),
        );
    }
    check_memory(wish, kv_bytes)?;
    Ok(KvPlan { n_ctx: longest.min(pool_tokens), kv_bytes })
}

/// The pool where no size was asked for.
fn default_bytes(Wish { room, weight_bytes, .. }: &Wish) -> u64 {
    let Some(available) = room.available_bytes else { return room.default_kv_bytes };
    let left = available.saturating_sub(room.reserved_bytes).saturating_sub(*weight_bytes);
    room.default_kv_bytes.min(left / 10 * room.default_kv_tenths)
}

fn check_memory(Wish { room, weight_bytes, .. }: &Wish, kv_bytes: u64) -> anyhow::Result<()> {
    let Some(available) = room.available_bytes else { return Ok(()) };
    let needed = weight_bytes.saturating_add(kv_bytes).saturating_add(room.reserved_bytes);
    let rest = match room.reserved_bytes {
        0 => String::new(),
        bytes => format!(", {} for everything else", memory::shown(bytes)),
    };
    anyhow::ensure!(
        needed <= available,
        "not enough {}: {} are needed ({} of weights, {} of keys and values{rest}), {} are available; \
         a smaller --kv-cache-mb or --ctx-size needs less",
        room.name,
        memory::shown(needed),
        memory::shown(*weight_bytes),
        memory::shown(kv_bytes),
        memory::shown(available),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Qwen2.5-0.5B in F16.
    const QWEN: Wish = Wish {
        bytes_per_token: 12_288,
        model_ctx: 32_768,
        max_seqs: 8,
        ctx_size: None,
        pool: Pool::Default,
        weight_bytes: 1_260_000_000,
        room: cpu(24 << 30),
    };

    const fn cpu(available: u64) -> Room {
        Room {
            name: "memory",
            available_bytes: Some(available),
            reserved_bytes: 0,
            default_kv_bytes: 1 << 30,
            default_kv_tenths: 5,
        }
    }

    fn check(wish: Wish, expected: Result<(usize, u64), &str>) {
        let got = plan(&wish).map(|p| (p.n_ctx, p.kv_bytes)).map_err(|e| e.to_string());
        match (expected, got) {
            (Ok(expected), Ok(got)) => assert_eq!(got, expected),
            (Err(part), Err(got)) => assert!(got.contains(part), "{got}"),
            (expected, got) => panic!("expected {expected:?}, got {got:?}"),
        }
    }

    #[test]
    fn a_gibibyte_by_default_shared_by_all() {
        check(QWEN, Ok((32_768, (1 << 30) / 196_608 * 196_608)));
    }

    #[test]
    fn no_more_than_all_sequences_could_use() {
        check(Wish { model_ctx: 100, ..QWEN }, Ok((100, 8 * 7 * 196_608)));
        check(Wish { ctx_size: Some(16), max_seqs: 2, ..QWEN }, Ok((16, 2 * 196_608)));
        check(Wish { ctx_size: Some(16), pool: Pool::Bytes(1 << 40), ..QWEN }, Ok((16, 8 * 196_608)));
    }

    #[test]
    fn the_default_context_is_what_the_pool_holds() {
        check(Wish { pool: Pool::Bytes(10 << 20), ..QWEN }, Ok((53 * 16, 53 * 196_608)));
        check(Wish { room: cpu(1_260_000_000 + 20 * 196_608), ..QWEN }, Ok((160, 10 * 196_608)));
    }

    #[test]
    fn an_explicit_context_gets_its_pool() {
        check(Wish { bytes_per_token: 131_072, ctx_size: Some(32_768), ..QWEN }, Ok((32_768, 32_768 * 131_072)));
    }

    #[test]
    fn says_what_does_not_fit() {
        check(
            Wish { ctx_size: Some(32_769), ..QWEN },
            Err("a context of 32769 tokens was asked for, the model was made for at most 32768"),
        );
        check(
            Wish { ctx_size: Some(2048), pool: Pool::Bytes(10 << 20), ..QWEN },
            Err("--kv-cache-mb 10 holds 848 tokens, a context of 2048 needs 24 MiB"),
        );
        check(
            Wish { room: cpu(1 << 30), ..QWEN },
            Err("not enough memory: 1.26 GB are needed (1.26 GB of weights, 196.6 kB of keys and values), 1.07 GB are"),
        );
    }
    #[test]
    fn so_many_tokens_in_whole_blocks() {
        check(Wish { ctx_size: Some(100), pool: Pool::Tokens(3 * 112), ..QWEN }, Ok((100, 21 * 196_608)));
    }

    #[test]
    fn a_gpu_gives_what_it_has_but_for_what_is_reserved() {
        let gpu = |free, pool| Wish { room: Room::of_gpu(free, 1 << 30), max_seqs: 256, pool, ..QWEN };
        check(gpu(140 << 30, Pool::Default), Ok((32_768, (16 << 30) / 196_608 * 196_608)));
        let left = (1000 / 10 * 9) * 196_608;
        let free = (1 << 30) + QWEN.weight_bytes + 1000 * 196_608;
        check(gpu(free, Pool::Default), Ok((900 * 16, left)));
        check(gpu(free, Pool::Bytes(1000 * 196_608)), Ok((1000 * 16, 1000 * 196_608)));
        check(
            gpu(2 << 30, Pool::Default),
            Err(
                "not enough GPU memory: 2.33 GB are needed (1.26 GB of weights, 196.6 kB of keys and values, 1.07 GB for \
                 everything else), 2.15 GB are available",
            ),
        );
    }
}
