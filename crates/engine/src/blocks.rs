//! The KV block pool: who holds which block, what is promised, and what may be evicted.
//!
//! A block is in one of three places: *held* by one or more sequences (its reference count), *idle* (held by nobody, its
//! content registered for reuse; evicted oldest first), or *free*. A sequence is admitted on a *promise* of all the blocks
//! it may come to need and takes them one by one, so that idle content survives until its space is really used.
//!
//! A sequence that holds a block holds the blocks before it too, and gives them back last to first. So a block is idle no
//! later than the one before it, eviction takes children before parents, and every registered block can be reached from the
//! root.

use transformer::{BlockId, TokenId};

use crate::prefix::{NodeId, PrefixIndex};

/// All KV blocks of an executor.
#[derive(Debug)]
pub(crate) struct BlockPool {
    /// Sequences that hold each block. `[n_blocks]`
    refs: Vec<u32>,
    free: Vec<BlockId>,
    idle: IdleList,
    index: PrefixIndex,
    n_promised: usize,
}

impl BlockPool {
    pub(crate) fn new(n_blocks: usize, block_tokens: usize) -> Self {
        Self {
            refs: vec![0; n_blocks],
            // Handed out from the end: low numbers first.
            free: (0..n_blocks as u32).rev().map(BlockId).collect(),
            idle: IdleList::new(n_blocks),
            index: PrefixIndex::new(n_blocks, block_tokens),
            n_promised: 0,
        }
    }

    /// Blocks held by sequences or promised to them.
    pub(crate) fn n_used(&self) -> usize {
        self.refs.len() - self.n_available()
    }

    /// Blocks that hold reusable content and that nobody uses.
    pub(crate) fn n_idle(&self) -> usize {
        self.idle.len
    }

    /// Blocks that can still be promised.
    pub(crate) fn n_available(&self) -> usize {
        self.free.len() + self.idle.len - self.n_promised
    }

    /// Promises `n` blocks if free and idle ones still cover all promises then. With `n` = 0 that can fail too, when idle
    /// blocks have been shared since.
    pub(crate) fn promise(&mut self, n: usize) -> bool {
        let fits = self.n_promised + n <= self.free.len() + self.idle.len;
        if fits {
            self.n_promised += n;
        }
        fits
    }

    /// Takes back promises that were not used.
    pub(crate) fn withdraw(&mut self, n: usize) {
        self.n_promised -= n;
    }

    /// Turns one promise into a block of unknown content, held once. Evicts the block that was idle longest if none is free.
    pub(crate) fn take_promised(&mut self) -> BlockId {
        self.n_promised -= 1;
        let block = self.free.pop().unwrap_or_else(|| {
            let block = self.idle.pop_oldest().expect("a promise is covered by a free or an idle block");
            self.index.remove(block);
            block
        });
        self.refs[block.0 as usize] = 1;
        block
    }

    /// The block that holds `tokens` after `parent`, with its node.
    pub(crate) fn find(&self, parent: NodeId, tokens: &[TokenId]) -> Option<(BlockId, NodeId)> {
        self.index.find(parent, tokens)
    }

    /// Holds a registered block once more. An idle block becomes unavailable by this: check promises afterwards.
    pub(crate) fn share(&mut self, block: BlockId) {
        let refs = &mut self.refs[block.0 as usize];
        *refs += 1;
        if *refs == 1 {
            self.idle.remove(block);
        }
    }

    /// Gives a block back. Its content stays for reuse if it is registered.
    pub(crate) fn release(&mut self, block: BlockId) {
        let refs = &mut self.refs[block.0 as usize];
        *refs -= 1;
        if *refs > 0 {
            return;
        }
        if self.index.contains(block) {
            self.idle.push_newest(block);
        } else {
            self.free.push(block);
        }
    }

    /// Makes the content of a full block that the caller holds known to others.
    ///
    /// If another block holds the same content already, the caller's is given back and that one is held in its place: the
    /// returned block is the one to use from now on.
    pub(crate) fn register(&mut self, parent: NodeId, tokens: &[TokenId], block: BlockId) -> (BlockId, NodeId) {
        match self.index.find(parent, tokens) {
            Some((known, node)) => {
                self.share(known);
                self.release(block);
                (known, node)
            }
            None => (block, self.index.insert(parent, tokens, block)),
        }
    }

    /// Panics unless every block is in exactly one place and `held` (each block as often as a sequence holds it) and
    /// `n_promised` agree with the pool's books.
    #[cfg(test)]
    pub(crate) fn check_books(&self, held: impl Iterator<Item = BlockId>, n_promised: usize) {
        let mut refs = vec![0; self.refs.len()];
        held.for_each(|b| refs[b.0 as usize] += 1);
        assert_eq!(refs, self.refs, "reference counts are those of the sequences");
        assert_eq!(self.n_promised, n_promised);
        assert!(self.n_promised <= self.free.len() + self.idle.len, "promises are covered");
        let mut places = vec![0; self.refs.len()];
        self.free.iter().for_each(|b| places[b.0 as usize] += 1);
        let idle = self.idle.iter().collect::<Vec<_>>();
        idle.iter().for_each(|b| places[b.0 as usize] += 1);
        self.refs.iter().enumerate().filter(|(_, r)| **r > 0).for_each(|(i, _)| places[i] += 1);
        assert!(places.iter().all(|&n| n == 1), "every block is in one place: {places:?}");
        assert!(self.free.iter().all(|&b| !self.index.contains(b)), "free blocks are not registered");
        assert!(idle.iter().all(|&b| self.index.contains(b)), "idle blocks are registered");
        let nodes = self.index.registered().map(|(_, node, _)| node).collect::<std::collections::HashSet<_>>();
        for (block, _, parent) in self.index.registered() {
            assert!(parent == NodeId::ROOT || nodes.contains(&parent), "{block:?} cannot be reached from the root");
        }
    }
}

const NOBODY: u32 = u32::MAX;

/// Idle blocks from the oldest to the newest: a doubly linked list through arrays indexed by block.
#[derive(Debug)]
struct IdleList {
    /// `(older, newer)` neighbour of each block in the list. `[n_blocks]`
    links: Vec<(u32, u32)>,
    oldest: u32,
    newest: u32,
    len: usize,
}

impl IdleList {
    fn new(n_blocks: usize) -> Self {
        Self { links: vec![(NOBODY, NOBODY); n_blocks], oldest: NOBODY, newest: NOBODY, len: 0 }
    }

    fn push_newest(&mut self, block: BlockId) {
        self.links[block.0 as usize] = (self.newest, NOBODY);
        match self.newest {
            NOBODY => self.oldest = block.0,
            newest => self.links[newest as usize].1 = block.0,
        }
        self.newest = block.0;
        self.len += 1;
    }

    fn remove(&mut self, block: BlockId) {
        let (older, newer) = self.links[block.0 as usize];
        match older {
            NOBODY => self.oldest = newer,
            older => self.links[older as usize].1 = newer,
        }
        match newer {
            NOBODY => self.newest = older,
            newer => self.links[newer as usize].0 = older,
        }
        self.len -= 1;
    }

    fn pop_oldest(&mut self) -> Option<BlockId> {
        let block = BlockId(self.oldest);
        (self.oldest != NOBODY).then(|| self.remove(block)).map(|()| block)
    }

    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let some = |at: u32| (at != NOBODY).then_some(at);
        std::iter::successors(some(self.oldest), move |&at| some(self.links[at as usize].1)).map(BlockId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicts_the_block_that_was_idle_longest() {
        let mut pool = BlockPool::new(3, 1);
        assert!(pool.promise(3));
        let blocks: Vec<_> = (0..3).map(|_| pool.take_promised()).collect();
        for (i, &b) in blocks.iter().enumerate() {
            pool.register(NodeId::ROOT, &[i as u32], b);
        }
        blocks.iter().for_each(|&b| pool.release(b));
        pool.share(blocks[0]);
        pool.release(blocks[0]);
        assert!(pool.promise(1));
        assert_eq!(pool.take_promised(), blocks[1]);
        assert!(pool.find(NodeId::ROOT, &[1]).is_none());
        assert!(pool.find(NodeId::ROOT, &[0]).is_some());
        pool.check_books([blocks[1]].into_iter(), 0);
    }

    #[test]
    fn a_second_block_of_the_same_content_gives_way_to_the_first() {
        let mut pool = BlockPool::new(2, 1);
        assert!(pool.promise(2));
        let (a, b) = (pool.take_promised(), pool.take_promised());
        let (_, node) = pool.register(NodeId::ROOT, &[7], a);
        assert_eq!(pool.register(NodeId::ROOT, &[7], b), (a, node));
        pool.check_books([a, a].into_iter(), 0);
        assert_eq!(pool.n_available(), 1);
    }

    #[test]
    fn sharing_idle_blocks_uncovers_promises() {
        let mut pool = BlockPool::new(2, 1);
        assert!(pool.promise(1));
        let block = pool.take_promised();
        pool.register(NodeId::ROOT, &[1], block);
        pool.release(block);
        assert!(pool.promise(2));
        pool.share(block);
        assert!(!pool.promise(0));
        pool.release(block);
        assert!(pool.promise(0));
    }

    #[test]
    fn promises_no_more_than_there_is() {
        let mut pool = BlockPool::new(4, 1);
        assert!(pool.promise(3) && !pool.promise(2) && pool.promise(1));
        pool.withdraw(4);
        assert_eq!((pool.n_used(), pool.n_idle()), (0, 0));
    }
}
