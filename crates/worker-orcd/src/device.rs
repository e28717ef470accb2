//! Which device runs the model. This build has one: the CPU.

use crate::cli::{DeviceArgs, DeviceChoice};

/// Threads to compute with.
///
/// # Errors
/// A device that this build does not have, or flags that contradict each other.
pub(crate) fn cpu_threads(args: &DeviceArgs) -> anyhow::Result<usize> {
    match (args.device, args.gpu_device) {
        (DeviceChoice::Cpu, Some(ordinal)) => {
            anyhow::bail!("--device cpu and --gpu-device {ordinal} contradict each other: leave one out")
        }
        (_, Some(ordinal)) => anyhow::bail!("--gpu-device {ordinal}: {NO_CUDA}; leave it out to run on the CPU"),
        (DeviceChoice::Cuda, None) => anyhow::bail!("--device cuda: {NO_CUDA}; use --device cpu or auto"),
        (DeviceChoice::Auto | DeviceChoice::Cpu, None) => Ok(match args.threads {
            Some(threads) => threads as usize,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }),
    }
}

const NO_CUDA: &str = "this build of worker-orcd has no CUDA";

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(device: DeviceChoice, gpu_device: Option<u32>) -> Result<usize, String> {
        cpu_threads(&DeviceArgs { device, gpu_device, threads: Some(3) }).map_err(|e| e.to_string())
    }

    #[test]
    fn auto_and_cpu_run_on_the_cpu() {
        assert_eq!(choose(DeviceChoice::Auto, None), Ok(3));
        assert_eq!(choose(DeviceChoice::Cpu, None), Ok(3));
    }

    #[test]
    fn a_gpu_is_refused_by_name_and_never_replaced_by_the_cpu() {
        assert!(choose(DeviceChoice::Cuda, None).unwrap_err().contains("has no CUDA"));
        assert!(choose(DeviceChoice::Auto, Some(0)).unwrap_err().starts_with("--gpu-device 0: this build"));
        assert!(choose(DeviceChoice::Cpu, Some(1)).unwrap_err().contains("contradict"));
    }
}
