//! The pages of the cache: who uses which, and which of those that nobody uses are worth keeping.
//!
//! A page is free, in use by one request or more, or kept: full, in the prefix tree and used by nobody at the moment. Kept pages
//! are given away last, the least recently used first. A request uses all the pages before each of its own, so a page is never
//! forgotten before those behind it.

use super::prefix::PrefixTree;
use std::collections::BTreeMap;

/// Pages by their number.
pub(super) struct PagePool {
    page_size: usize,
    /// Requests that use each page.
    users: Vec<u32>,
    /// When each kept page was last used.
    last_use: Vec<u64>,
    free: Vec<u32>,
    /// Kept pages by their last use.
    kept: BTreeMap<u64, u32>,
    clock: u64,
    tree: PrefixTree,
}

impl PagePool {
    /// `pages` free pages of `page_size` tokens.
    pub(super) fn new(pages: usize, page_size: usize) -> PagePool {
        PagePool {
            page_size,
            users: vec![0; pages],
            last_use: vec![0; pages],
            free: (0..pages as u32).rev().collect(),
            kept: BTreeMap::new(),
            clock: 0,
            tree: PrefixTree::new(pages),
        }
    }

    /// Pages that [`PagePool::take`] can give.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// A page for one request's own tokens.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.kept.pop_first()?;
                self.tree.remove(page);
                page
            }
        };
        self.users[page as usize] = 1;
        Some(page)
    }

    /// Adds a user to a page.
    fn share(&mut self, page: u32) {
        if self.users[page as usize] == 0 {
            self.kept.remove(&self.last_use[page as usize]);
        }
        self.users[page as usize] += 1;
    }

    /// Takes one user away from a page.
    fn release(&mut self, page: u32) {
        self.users[page as usize] -= 1;
        if self.users[page as usize] > 0 {
            return;
        }
        if self.tree.contains(page) {
            self.clock += 1;
            self.last_use[page as usize] = self.clock;
            self.kept.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
    }

    /// Takes one user away from all pages of a request, the last ones first: what is behind a page is forgotten before it.
    pub(super) fn release_all(&mut self, pages: &mut Vec<u32>) {
        while let Some(page) = pages.pop() {
            self.release(page);
        }
    }

    /// The pages that hold the beginning of `tokens`, as long as there are any; they have one user more.
    pub(super) fn find(&mut self, tokens: &[u32]) -> Vec<u32> {
        let mut pages: Vec<u32> = Vec::new();
        for tokens in tokens.chunks_exact(self.page_size) {
            let Some(page) = self.tree.child(pages.last().copied(), tokens) else { break };
            self.share(page);
            pages.push(page);
        }
        pages
    }

    /// Lets others find page `index` of a request, which is full with `tokens`. All pages before it were published before. Where
    /// another page holds the same already, that one takes its place: equal tokens have keys and values equal to the bit.
    pub(super) fn publish(&mut self, pages: &mut [u32], index: usize, tokens: &[u32]) {
        let parent = index.checked_sub(1).map(|before| pages[before]);
        match self.tree.child(parent, tokens) {
            Some(page) if page != pages[index] => {
                self.share(page);
                self.release(std::mem::replace(&mut pages[index], page));
            }
            Some(_) => {}
            None => self.tree.insert(parent, tokens, pages[index]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes pages for `tokens`, what is there already shared, and publishes the full ones.
    fn read(pool: &mut PagePool, tokens: &[u32]) -> (Vec<u32>, usize) {
        let mut pages = pool.find(tokens);
        let shared = pages.len();
        while pages.len() < tokens.len().div_ceil(pool.page_size) {
            pages.push(pool.take().expect("a free page"));
        }
        for index in shared..tokens.len() / pool.page_size {
            pool.publish(&mut pages, index, &tokens[index * pool.page_size..(index + 1) * pool.page_size]);
        }
        (pages, shared)
    }

    #[test]
    fn equal_beginnings_share_full_pages_and_nothing_else() {
        let mut pool = PagePool::new(8, 2);
        let (mut a, shared) = read(&mut pool, &[1, 2, 3, 4, 5]);
        assert_eq!((a.len(), shared), (3, 0));
        let (mut b, shared) = read(&mut pool, &[1, 2, 3, 4, 5]);
        assert_eq!((shared, b[..2] == a[..2], b[2] == a[2]), (2, true, false), "half a page is not shared");
        // The same tokens behind others are other keys and values.
        let (mut c, shared) = read(&mut pool, &[9, 9, 3, 4]);
        assert_eq!(shared, 0);
        assert_eq!(pool.available(), 8 - 3 - 1 - 2);
        [&mut a, &mut b, &mut c].into_iter().for_each(|pages| pool.release_all(pages));
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn freed_prefixes_are_kept_until_their_memory_is_needed_the_least_recently_used_first() {
        let mut pool = PagePool::new(6, 2);
        for prompt in [[1, 1, 1, 1], [2, 2, 2, 2]] {
            let (mut pages, _) = read(&mut pool, &prompt);
            pool.release_all(&mut pages);
        }
        // The first prompt is used again, so the second is the older one now.
        let (mut again, shared) = read(&mut pool, &[1, 1, 1, 1]);
        assert_eq!(shared, 2);
        pool.release_all(&mut again);
        // Two free pages, then one that is kept: the end of the second prompt.
        let (mut other, _) = read(&mut pool, &[3, 3, 3, 3, 3]);
        let lengths = |pool: &mut PagePool| {
            [[1; 4], [2; 4]].map(|prompt| {
                let mut found = pool.find(&prompt);
                let length = found.len();
                pool.release_all(&mut found);
                length
            })
        };
        assert_eq!(lengths(&mut pool), [2, 1]);
        pool.release_all(&mut other);
        assert_eq!(pool.available(), 6);
        let mut all: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5], "no page is lost or given twice");
        assert!(pool.find(&[1; 4]).is_empty());
    }

    #[test]
    fn pages_in_use_are_never_given_away() {
        let mut pool = PagePool::new(3, 2);
        let (mut a, _) = read(&mut pool, &[1, 1, 1, 1]);
        let mut b = pool.find(&[1, 1, 1, 1]);
        pool.release_all(&mut a);
        assert_eq!(pool.available(), 1);
        assert!(pool.take().is_some() && pool.take().is_none());
        pool.release_all(&mut b);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn two_requests_that_compute_the_same_page_end_up_with_one() {
        let mut pool = PagePool::new(4, 2);
        let mut pages = [[pool.take().unwrap()], [pool.take().unwrap()]];
        pages.iter_mut().for_each(|pages| pool.publish(pages, 0, &[7, 8]));
        assert_eq!(pages[0], pages[1]);
        assert_eq!(pool.available(), 3);
    }

    /// Random requests come and go: pages are conserved, and users always see whole prefixes.
    #[test]
    fn pages_are_conserved_over_random_histories() {
        let (total, mut seed) = (24, 1u64);
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut pool = PagePool::new(total, 2);
        let mut live: Vec<Vec<u32>> = Vec::new();
        for _ in 0..20_000 {
            if random(2) == 0 && pool.available() >= 6 {
                let length = 1 + random(12) as usize;
                let tokens: Vec<u32> = (0..length).map(|_| random(2) as u32).collect();
                live.push(read(&mut pool, &tokens).0);
            } else if !live.is_empty() {
                let mut pages = live.swap_remove(random(live.len() as u64) as usize);
                pool.release_all(&mut pages);
            }
            let mut used: Vec<u32> = live.iter().flatten().copied().collect();
            used.sort_unstable();
            used.dedup();
            assert_eq!(pool.available(), total - used.len());
        }
    }
}
