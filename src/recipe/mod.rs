//! `ratoon run`: a recipe file, its chain of stages, resumed where it stopped.
