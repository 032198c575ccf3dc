//! GPUs as reported by NVIDIA's driver. The management library is opened at run time, so that one binary
//! serves machines with and without it. A machine without it has no GPUs, and the reason can be queried.

use super::Device;
use nvml_wrapper::error::NvmlError;
use protocol::agent::Gpu;
use std::ffi::OsStr;
use std::path::PathBuf;

/// Names of the library: drivers install the first, development packages the second.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
/// Device nodes that every CUDA program opens, besides one for each GPU.
const SHARED_NODES: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];

/// GPUs reported by the driver.
#[derive(Debug)]
pub struct Nvml(Result<nvml_wrapper::Nvml, NvmlError>);

impl Nvml {
    /// Opens the management library, if present.
    #[must_use]
    pub fn open() -> Self {
        let load = |name| nvml_wrapper::Nvml::builder().lib_path(OsStr::new(name)).init();
        Self(load(LIBRARIES[0]).or_else(|_| load(LIBRARIES[1])))
    }

    /// Returns the reason why the driver's library cannot be used, if it cannot: then there are no GPUs.
    #[must_use]
    pub fn unavailable(&self) -> Option<String> {
        self.0.as_ref().err().map(ToString::to_string)
    }
}

impl Device for Nvml {
    fn list(&self) -> Vec<Gpu> {
        let Ok(library) = &self.0 else { return vec![] };
        (0..library.device_count().unwrap_or(0)).map(|index| describe(library, index)).collect()
    }

    fn nodes(&self, indices: &[u32]) -> Vec<PathBuf> {
        let Ok(library) = &self.0 else { return vec![] };
        if indices.is_empty() {
            return vec![];
        }
        let minor = |index: &u32| library.device_by_index(*index).ok()?.minor_number().ok();
        let own = indices.iter().filter_map(minor).map(|minor| format!("/dev/nvidia{minor}"));
        let shared = SHARED_NODES.into_iter().map(String::from);
        own.chain(shared).map(PathBuf::from).filter(|path| path.exists()).collect()
    }
}

/// A GPU that does not answer is listed as unhealthy: it is present, but must not get any work.
fn describe(library: &nvml_wrapper::Nvml, index: u32) -> Gpu {
    let read = || -> Result<Gpu, NvmlError> {
        let device = library.device_by_index(index)?;
        Ok(Gpu {
            index,
            uuid: device.uuid()?,
            name: device.name()?,
            memory_bytes: device.memory_info()?.total,
            simulated: false,
            healthy: true,
        })
    };
    read().unwrap_or_else(|error| Gpu {
        index,
        uuid: String::new(),
        name: format!("does not answer: {error}"),
        memory_bytes: 0,
        simulated: false,
        healthy: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_there_and_answers_or_is_absent_with_a_reason() {
        let device = Nvml::open();
        let gpus = device.list();
        match device.unavailable() {
            Some(reason) => assert!(gpus.is_empty() && !reason.is_empty()),
            None => assert!(gpus.iter().enumerate().all(|(at, gpu)| gpu.index as usize == at)),
        }
        assert!(gpus.iter().all(|gpu| !gpu.simulated));
        assert_eq!(device.nodes(&[]), Vec::<PathBuf>::new());
    }
}
