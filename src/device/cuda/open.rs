//! Which cards there are, and what can be wrong with them.

use super::memory::Memory;
use super::timing::Timing;
use super::{Cuda, refused};
use crate::error::{Error, Result};
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{CudaContext, result, sys};
use cudarc::nvrtc::Ptx;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

// `FATBINS`: name and contents of each kernel file for every architecture, by nvcc (`build.rs`).
include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Oldest driver that has what is called: CUDA 12.0 (R525).
const OLDEST_DRIVER: i32 = 12000;

/// Oldest compute capability with kernels: Turing.
const OLDEST_CARD: (i32, i32) = (7, 5);

/// Oldest compute capability whose products take BF16: Ampere.
const OLDEST_BF16: (i32, i32) = (8, 0);

/// A card as the driver describes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Card {
    /// Its number, as in `cuda:N`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Bytes of its memory.
    pub total_memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// CUDA version that the driver supports: 12000 is 12.0.
    pub driver: i32,
}

impl Card {
    /// `cuda:N`.
    pub fn device_name(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }

    /// Errors when the kernels do not run on it.
    pub fn check(&self) -> Result<()> {
        if self.compute_capability >= OLDEST_CARD {
            return Ok(());
        }
        let (major, minor) = self.compute_capability;
        Err(Error::Device {
            device: self.device_name(),
            problem: format!(
                "{} has compute capability {major}.{minor}, kernels need 7.5 (Turing) or later",
                self.name
            ),
            instead: "choose another card with --device cuda:N, or use --device cpu".into(),
        })
    }

    /// Whether its products take BF16; they round operands to F16 otherwise.
    pub(crate) fn multiplies_bf16(&self) -> bool {
        self.compute_capability >= OLDEST_BF16
    }
}

/// Every card that the driver shows. Errors without a driver, with one that is too old, and with none of its cards visible.
pub fn cards() -> Result<Vec<Card>> {
    let driver = start("cuda")?;
    let count = result::device::get_count().map_err(|e| refused("cuda", "count the cards", e))?;
    if count == 0 {
        return Err(Error::Device {
            device: "cuda".into(),
            problem: "the driver shows no card".into(),
            instead: "look at CUDA_VISIBLE_DEVICES and nvidia-smi, or use --device cpu".into(),
        });
    }
    (0..count as usize).map(|ordinal| describe(ordinal, driver)).collect()
}

/// Loads the driver and asks its version.
fn start(device: &str) -> Result<i32> {
    let missing = |problem: &str| Error::Device {
        device: device.to_string(),
        problem: problem.to_string(),
        instead: "install NVIDIA's driver, or use --device cpu".into(),
    };
    // SAFETY: loading the driver's library runs its initialisers, which every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing("no NVIDIA driver on this machine (the loader finds no libcuda.so)"));
    }
    let mut version = 0;
    // SAFETY: `version` is a place for an int.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| refused(device, "ask the driver for its version", e))?;
    if version < OLDEST_DRIVER {
        return Err(Error::Device {
            device: device.to_string(),
            problem: format!("the driver supports CUDA {}, 12.0 or later is needed", self::version(version)),
            instead: "install driver R525 or later, or use --device cpu".into(),
        });
    }
    result::init().map_err(|e| refused(device, "start the driver (is a card installed?)", e))?;
    Ok(version)
}

/// `12.4` of 12040.
fn version(driver: i32) -> String {
    format!("{}.{}", driver / 1000, driver % 1000 / 10)
}

fn describe(ordinal: usize, driver: i32) -> Result<Card> {
    let name = format!("cuda:{ordinal}");
    let describe = || {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: `device` was just given by the driver.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        Ok(Card {
            ordinal,
            name: result::device::get_name(device)?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: as above.
            total_memory: unsafe { result::device::total_mem(device) }? as u64,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            driver,
        })
    };
    describe().map_err(|e| refused(&name, "describe the card", e))
}

impl Cuda {
    /// Opens a card: context, stream, kernels. Errors as [`cards`], and for a number without a card or a card without kernels.
    pub fn open(ordinal: usize) -> Result<Arc<Cuda>> {
        let all = cards()?;
        let count = all.len();
        let Some(card) = all.into_iter().nth(ordinal) else {
            let expected = format!("cuda:0 to cuda:{} (cards that the driver shows)", count - 1);
            return Err(Error::usage("--device", expected, format!("cuda:{ordinal}")));
        };
        card.check()?;
        let name = card.device_name();
        let context = CudaContext::new(ordinal).map_err(|e| refused(&name, "open the card", e))?;
        // SAFETY: one stream does all work in the order of the calls, so cudarc need not make streams wait for each other.
        unsafe { context.disable_event_tracking() };
        // Not the default stream: that one cannot be captured into a graph.
        let stream = context.new_stream().map_err(|e| refused(&name, "make a stream", e))?;
        let load = |(file, image): &(&str, &[u8])| {
            let module = context.load_module(Ptx::from_binary(image.to_vec()));
            module.map_err(|e| Error::Device {
                device: name.clone(),
                problem: format!("the driver (CUDA {}) cannot load the kernels of {file}: {e:?}", version(card.driver)),
                instead: "update the driver to the toolkit's version or later, or build with an older toolkit".into(),
            })
        };
        // A build without device code is for a driver that brings its own (tests/simt); NVIDIA's refuses the empty image.
        let fatbins = if FATBINS.is_empty() { &[("a build without device code", &[0u8][..])] } else { FATBINS };
        let modules = fatbins.iter().map(load).collect::<Result<_>>()?;
        let (free, _) = context.mem_get_info().map_err(|e| refused(&name, "ask for free memory", e))?;
        Ok(Arc::new(Cuda {
            memory: Memory::new(free as u64),
            card,
            context,
            stream,
            modules,
            functions: Mutex::new(HashMap::new()),
            clusters: Mutex::new(HashMap::new()),
            ring: Mutex::new(None),
            timing: Timing::default(),
        }))
    }
}
