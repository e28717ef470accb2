//! Which device runs the model. The only file that decides it; `start` makes the executor.

use crate::cli::{DeviceArgs, DeviceChoice};
use crate::gpu::{self, Gpu, NoGpu};
use crate::memory;

/// A device that was found fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// The processor, with so many threads.
    Cpu {
        /// Threads to compute with.
        threads: usize,
    },
    /// An NVIDIA GPU.
    Cuda(Gpu),
}

impl Device {
    /// The device that was asked for, or with `auto` the best there is. Says so where that is not the GPU that this build
    /// is made for.
    ///
    /// # Errors
    /// A GPU was asked for by name and cannot be had; flags that contradict each other.
    pub(crate) fn choose(args: &DeviceArgs) -> anyhow::Result<Self> {
        let chosen = choose(args, |ordinal| gpu::find(ordinal, !args.no_cuda_graphs))?;
        if let Some(reason) = &chosen.instead_of_gpu {
            tracing::warn!("running on the CPU: {reason}");
        }
        if let Self::Cuda(gpu) = &chosen.device {
            tracing::info!(
                "GPU {}: {}, {} of {} of memory free",
                gpu.ordinal,
                gpu.name,
                memory::shown(gpu.free_bytes),
                memory::shown(gpu.total_bytes)
            );
        }
        Ok(chosen.device)
    }

    /// Rows that one step may have: prompts are read in chunks of this.
    ///
    /// A chunk is as long as others wait for their next token, and a cancelled prompt for its end. On a CPU longer ones
    /// read a prompt no faster: at 128 rows computing already takes twenty times as long as reading the weights. A GPU
    /// needs thousands of rows to be busy.
    pub(crate) fn max_batch_tokens(&self) -> usize {
        match self {
            Self::Cpu { .. } => 128,
            Self::Cuda(_) => 2048,
        }
    }

    /// Threads that compute on the CPU.
    pub(crate) fn threads(&self) -> usize {
        match self {
            Self::Cpu { threads } => *threads,
            Self::Cuda(_) => 1,
        }
    }

    /// For orchestrators: what kind of worker this is.
    pub(crate) fn worker_type(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "cpu",
            Self::Cuda(_) => "bespoke-cuda",
        }
    }

    /// For orchestrators: where the model's memory is.
    pub(crate) fn memory_architecture(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "system",
            Self::Cuda(_) => "vram-only",
        }
    }
}

/// A choice, and why it is not a GPU where it could have been one.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    device: Device,
    instead_of_gpu: Option<String>,
}

fn choose(args: &DeviceArgs, find_gpu: impl FnOnce(u32) -> Result<Gpu, NoGpu>) -> anyhow::Result<Chosen> {
    let cpu = |reason| Chosen {
        device: Device::Cpu {
            threads: match args.threads {
                Some(threads) => threads as usize,
                None => std::thread::available_parallelism().map_or(1, usize::from),
            },
        },
        instead_of_gpu: reason,
    };
    let (asked, way_out) = match (args.device, args.gpu_device) {
        (DeviceChoice::Cpu, Some(ordinal)) => {
            anyhow::bail!("--device cpu and --gpu-device {ordinal} contradict each other: leave one out")
        }
        (DeviceChoice::Cpu, None) => return Ok(cpu(None)),
        (DeviceChoice::Auto, None) => {
            return Ok(match find_gpu(0) {
                Ok(gpu) => Chosen { device: Device::Cuda(gpu), instead_of_gpu: None },
                Err(NoGpu::NotBuilt) => cpu(None),
                Err(NoGpu::Unusable(reason)) => cpu(Some(reason)),
            });
        }
        (_, Some(ordinal)) => (format!("--gpu-device {ordinal}"), "leave it out to run on the CPU"),
        (DeviceChoice::Cuda, None) => ("--device cuda".to_owned(), "use --device cpu or auto"),
    };
    match find_gpu(args.gpu_device.unwrap_or(0)) {
        Ok(gpu) => Ok(Chosen { device: Device::Cuda(gpu), instead_of_gpu: None }),
        Err(NoGpu::NotBuilt) => anyhow::bail!("{asked}: this build of worker-orcd has no CUDA; {way_out}"),
        Err(NoGpu::Unusable(reason)) => anyhow::bail!("{asked}: {reason}; {way_out}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(device: DeviceChoice, gpu_device: Option<u32>) -> DeviceArgs {
        DeviceArgs { device, gpu_device, threads: Some(3), no_cuda_graphs: false }
    }

    fn check(device: DeviceChoice, gpu_device: Option<u32>, found: Result<(), NoGpu>) -> Result<Chosen, String> {
        let find = |ordinal| found.map(|()| gpu(ordinal));
        choose(&args(device, gpu_device), find).map_err(|e| e.to_string())
    }

    fn gpu(ordinal: u32) -> Gpu {
        Gpu { ordinal, name: "H200".into(), free_bytes: 100, total_bytes: 150, graphs: true }
    }

    fn on_cpu(reason: Option<&str>) -> Result<Chosen, String> {
        Ok(Chosen { device: Device::Cpu { threads: 3 }, instead_of_gpu: reason.map(str::to_owned) })
    }

    fn on_gpu(ordinal: u32) -> Result<Chosen, String> {
        Ok(Chosen { device: Device::Cuda(gpu(ordinal)), instead_of_gpu: None })
    }

    fn no_driver() -> Result<(), NoGpu> {
        Err(NoGpu::Unusable("no NVIDIA driver".into()))
    }

    #[test]
    fn auto_takes_a_gpu_where_there_is_one_and_says_why_not_otherwise() {
        assert_eq!(check(DeviceChoice::Auto, None, Ok(())), on_gpu(0));
        assert_eq!(check(DeviceChoice::Auto, None, no_driver()), on_cpu(Some("no NVIDIA driver")));
        assert_eq!(check(DeviceChoice::Auto, None, Err(NoGpu::NotBuilt)), on_cpu(None));
    }

    #[test]
    fn an_explicit_cpu_does_not_look_for_a_gpu() {
        let chosen = choose(&args(DeviceChoice::Cpu, None), |_| panic!("looked")).map_err(|e| e.to_string());
        assert_eq!(chosen, on_cpu(None));
    }

    #[test]
    fn a_gpu_that_was_named_is_used() {
        assert_eq!(check(DeviceChoice::Cuda, None, Ok(())), on_gpu(0));
        assert_eq!(check(DeviceChoice::Cuda, Some(2), Ok(())), on_gpu(2));
        assert_eq!(check(DeviceChoice::Auto, Some(2), Ok(())), on_gpu(2));
    }

    #[test]
    fn a_gpu_is_refused_by_name_and_never_replaced_by_the_cpu() {
        let error = |device, ordinal, found| check(device, ordinal, found).unwrap_err();
        assert!(error(DeviceChoice::Cuda, None, Err(NoGpu::NotBuilt)).contains("has no CUDA"));
        assert!(error(DeviceChoice::Auto, Some(0), Err(NoGpu::NotBuilt)).starts_with("--gpu-device 0: this build"));
        assert!(error(DeviceChoice::Cpu, Some(1), Ok(())).contains("contradict"));
        let expected = "--device cuda: no NVIDIA driver; use --device cpu or auto";
        assert_eq!(error(DeviceChoice::Cuda, None, no_driver()), expected);
        let expected = "--gpu-device 4: no NVIDIA driver; leave it out to run on the CPU";
        assert_eq!(error(DeviceChoice::Auto, Some(4), no_driver()), expected);
    }
}
