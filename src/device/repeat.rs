//! Steps that are done again and again with other data.

#[cfg(feature = "cuda")]
use super::Backend;
use super::{Device, Tensor};
use crate::error::Result;

/// Steps that were done before, see [`Device::repeat`]. The CPU keeps none.
#[derive(Default)]
pub struct Repeated {
    #[cfg(feature = "cuda")]
    graphs: super::cuda::Graphs,
}

impl Device {
    /// Does `step`. On a card a step that was done before, with the same tensors in the same shapes, is started with one call of the
    /// driver, as a CUDA graph, unless it is [profiled](Device::profile). Results are the same bits.
    ///
    /// `inputs`: the U32 tensors that it reads; their contents may differ each time. A step runs operations, and tensors that it
    /// makes end with it; one that copies to or from the host is refused on a card.
    pub fn repeat(&self, repeated: &mut Repeated, inputs: &[&Tensor], step: impl FnOnce() -> Result<()>) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &self.backend
            && !cuda.profiles()
        {
            inputs.iter().try_for_each(|tensor| tensor.kernel_ptr::<u32>(cuda).map(drop))?;
            return cuda.repeat(&mut repeated.graphs, step);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = (repeated, inputs);
        step()
    }
}
