//! The content index: which KV block holds the keys and values of these tokens after that beginning?
//!
//! A key or value depends on every token before it, so a block's content is named by its *node*: the tokens in the block
//! and the node of the block before it. Nodes are numbered from a counter that never goes back, so a block that was evicted
//! and filled again is a new node and can never be mistaken for the parent it used to be. Tokens are compared, not only
//! their hashes: a hash collision costs a comparison and never a wrong answer.
//!
//! A hash table with chains through arrays indexed by block: everything is allocated at the start.

use std::hash::{BuildHasher, RandomState};

use transformer::{BlockId, TokenId};

/// Names one content: a block's tokens and all the tokens before them. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u64);

impl NodeId {
    /// The empty beginning: the parent of every sequence's first block.
    pub(crate) const ROOT: NodeId = NodeId(0);
}

const END_OF_CHAIN: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    node: NodeId,
    parent: NodeId,
    bucket: u32,
    next: u32,
}

/// The content index of a pool of `n_blocks` blocks.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    block_tokens: usize,
    // Keyed at random, so that nobody can choose prompts that all fall into one chain.
    hasher: RandomState,
    /// First block of each chain. `[power of two >= 2 * n_blocks]`
    heads: Vec<u32>,
    /// `[n_blocks]`
    entries: Vec<Option<Entry>>,
    /// Contents. `[n_blocks, block_tokens]`
    tokens: Vec<TokenId>,
    last_node: u64,
}

impl PrefixIndex {
    pub(crate) fn new(n_blocks: usize, block_tokens: usize) -> Self {
        Self {
            block_tokens,
            hasher: RandomState::new(),
            heads: vec![END_OF_CHAIN; (2 * n_blocks).next_power_of_two()],
            entries: vec![None; n_blocks],
            tokens: vec![0; n_blocks * block_tokens],
            last_node: NodeId::ROOT.0,
        }
    }

    /// The block that holds `tokens` after `parent`, and the node that the two of them are.
    pub(crate) fn find(&self, parent: NodeId, tokens: &[TokenId]) -> Option<(BlockId, NodeId)> {
        let mut at = self.heads[self.bucket(parent, tokens)];
        while at != END_OF_CHAIN {
            let entry = self.entries[at as usize].expect("a chain links registered blocks");
            if entry.parent == parent && self.tokens_of(at) == tokens {
                return Some((BlockId(at), entry.node));
            }
            at = entry.next;
        }
        None
    }

    /// Registers a full block. The content must not be registered yet, nor the block.
    pub(crate) fn insert(&mut self, parent: NodeId, tokens: &[TokenId], block: BlockId) -> NodeId {
        debug_assert_eq!(tokens.len(), self.block_tokens);
        debug_assert!(self.find(parent, tokens).is_none() && !self.contains(block));
        let bucket = self.bucket(parent, tokens);
        self.last_node += 1;
        let node = NodeId(self.last_node);
        let at = block.0 as usize;
        self.tokens[at * self.block_tokens..][..self.block_tokens].copy_from_slice(tokens);
        self.entries[at] = Some(Entry { node, parent, bucket: bucket as u32, next: self.heads[bucket] });
        self.heads[bucket] = block.0;
        node
    }

    /// Forgets a block's content; its node is gone for good.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Some(removed) = self.entries[block.0 as usize].take() else { return };
        let bucket = removed.bucket as usize;
        if self.heads[bucket] == block.0 {
            self.heads[bucket] = removed.next;
            return;
        }
        let mut at = self.heads[bucket];
        while at != END_OF_CHAIN {
            let entry = self.entries[at as usize].as_mut().expect("a chain links registered blocks");
            if entry.next == block.0 {
                entry.next = removed.next;
                return;
            }
            at = entry.next;
        }
        unreachable!("a registered block is in its chain");
    }

    /// Whether the block's content is registered.
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.entries[block.0 as usize].is_some()
    }

    fn tokens_of(&self, block: u32) -> &[TokenId] {
        &self.tokens[block as usize * self.block_tokens..][..self.block_tokens]
    }

    fn bucket(&self, parent: NodeId, tokens: &[TokenId]) -> usize {
        self.hasher.hash_one((parent, tokens)) as usize & (self.heads.len() - 1)
    }

    /// Every registered block with its node and its parent.
    #[cfg(test)]
    pub(crate) fn registered(&self) -> impl Iterator<Item = (BlockId, NodeId, NodeId)> + '_ {
        self.entries.iter().enumerate().filter_map(|(i, e)| e.map(|e| (BlockId(i as u32), e.node, e.parent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_block_only_under_its_parent_and_its_tokens() {
        let mut index = PrefixIndex::new(4, 2);
        let a = index.insert(NodeId::ROOT, &[1, 2], BlockId(3));
        let b = index.insert(a, &[1, 2], BlockId(0));
        assert_eq!(index.find(NodeId::ROOT, &[1, 2]), Some((BlockId(3), a)));
        assert_eq!(index.find(a, &[1, 2]), Some((BlockId(0), b)));
        assert_eq!(index.find(b, &[1, 2]), None);
        assert_eq!(index.find(NodeId::ROOT, &[2, 1]), None);
    }

    #[test]
    fn a_block_filled_again_is_not_the_parent_it_was() {
        let mut index = PrefixIndex::new(2, 1);
        let old = index.insert(NodeId::ROOT, &[1], BlockId(0));
        index.insert(old, &[2], BlockId(1));
        index.remove(BlockId(0));
        let new = index.insert(NodeId::ROOT, &[9], BlockId(0));
        assert_ne!(old, new);
        assert_eq!(index.find(new, &[2]), None);
    }

    #[test]
    fn removes_from_the_middle_of_a_long_chain() {
        // Two buckets for one block each at least; 64 blocks in 128 buckets collide somewhere, and removal in any order
        // must keep the rest.
        let mut index = PrefixIndex::new(64, 1);
        for i in 0..64 {
            index.insert(NodeId::ROOT, &[i], BlockId(i));
        }
        for i in (0..64).step_by(2) {
            index.remove(BlockId(i));
        }
        for i in 0..64 {
            assert_eq!(index.find(NodeId::ROOT, &[i]).is_some(), i % 2 == 1);
        }
    }
}
