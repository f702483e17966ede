//! Which request owns which pages of the cache.

/// A free list of page numbers. Which numbers a request gets changes nothing in its tokens.
pub(super) struct PageAllocator {
    free: Vec<u32>,
    page_size: usize,
}

impl PageAllocator {
    pub(super) fn new(pages: usize, page_size: usize) -> PageAllocator {
        PageAllocator { free: (0..pages as u32).rev().collect(), page_size }
    }

    /// Pages for `tokens` tokens, all or none.
    pub(super) fn take(&mut self, tokens: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(tokens.div_ceil(self.page_size))?;
        Some(self.free.split_off(rest))
    }

    /// Gives a finished request's pages back.
    pub(super) fn give_back(&mut self, pages: Vec<u32>) {
        self.free.extend(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_never_shared_and_never_lost() {
        let mut pages = PageAllocator::new(5, 16);
        let (a, b) = (pages.take(17).unwrap(), pages.take(48).unwrap());
        let mut all = [a.clone(), b].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert!(pages.take(1).is_none());
        pages.give_back(a);
        assert!(pages.take(33).is_none());
        assert_eq!(pages.take(32).map(|p| p.len()), Some(2));
    }
}
