//! Self-data distillation: the uncut model rewrites each answer; the rewrite is kept only when it is right.
