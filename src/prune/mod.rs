//! Which blocks to cut, and cutting them: importance metrics, plan, writer.
