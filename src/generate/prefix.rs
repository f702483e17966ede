//! Which page holds which tokens: a tree of full pages, so that a prompt finds what others computed for its beginning.
//!
//! A page is a node; its parent is the page of the tokens before. Keys and values depend on all the tokens up to their own, so a
//! page may be used where its own tokens and those of all its ancestors are a prompt's beginning. Tokens are compared
//! themselves: no hash can mistake one prompt for another.

use std::collections::HashMap;

/// Children of a node by their tokens.
type Children = HashMap<Box<[u32]>, u32>;

#[derive(Default)]
struct Node {
    /// Where this page hangs; `None` while it is not in the tree.
    place: Option<Place>,
    children: Children,
}

struct Place {
    /// The page before; `None` at the start of a prompt.
    parent: Option<u32>,
    tokens: Box<[u32]>,
}

/// The tree. Pages are named by their number.
pub(super) struct PrefixTree {
    nodes: Vec<Node>,
    roots: Children,
}

impl PrefixTree {
    /// An empty tree for pages below `pages`.
    pub(super) fn new(pages: usize) -> PrefixTree {
        PrefixTree { nodes: (0..pages).map(|_| Node::default()).collect(), roots: Children::new() }
    }

    fn children(&mut self, parent: Option<u32>) -> &mut Children {
        match parent {
            Some(page) => &mut self.nodes[page as usize].children,
            None => &mut self.roots,
        }
    }

    /// The page with these tokens behind `parent`.
    pub(super) fn child(&self, parent: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let children = parent.map_or(&self.roots, |page| &self.nodes[page as usize].children);
        children.get(tokens).copied()
    }

    /// Hangs `page` behind `parent`. No page with these tokens may be there yet.
    pub(super) fn insert(&mut self, parent: Option<u32>, tokens: &[u32], page: u32) {
        self.children(parent).insert(tokens.into(), page);
        self.nodes[page as usize].place = Some(Place { parent, tokens: tokens.into() });
    }

    /// Whether a page is in the tree.
    pub(super) fn contains(&self, page: u32) -> bool {
        self.nodes[page as usize].place.is_some()
    }

    /// Takes a page out. It must have no children: who forgets a page has forgotten those behind it before.
    pub(super) fn remove(&mut self, page: u32) {
        debug_assert!(self.nodes[page as usize].children.is_empty(), "page {page} has children");
        if let Some(Place { parent, tokens }) = self.nodes[page as usize].place.take() {
            self.children(parent).remove(&tokens);
        }
    }
}
