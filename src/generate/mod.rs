//! Generation: scheduler, pages, sampling.
