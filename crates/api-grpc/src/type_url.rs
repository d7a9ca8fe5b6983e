//! Type URLs that are matched on. Protobuf messages go by their bare full name ([`prost::Name::full_name`]); types that
//! travel as JSON have URLs of their own.

/// A runtime specification as JSON.
pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// A process of a runtime specification as JSON.
pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Resource limits of a runtime specification as JSON.
pub const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// A runtime's features document as JSON.
pub const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// `containerd.runc.v1.Options`.
pub const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
/// `containerd.runc.v1.CheckpointOptions`.
pub const RUNC_CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";
/// `containerd.runc.v1.ProcessDetails`.
pub const RUNC_PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";
/// `runtimeoptions.v1.Options`.
pub const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
/// `io.containerd.cgroups.v1.Metrics`.
pub const CGROUPS_V1_METRICS: &str = "io.containerd.cgroups.v1.Metrics";
/// `io.containerd.cgroups.v2.Metrics`.
pub const CGROUPS_V2_METRICS: &str = "io.containerd.cgroups.v2.Metrics";

#[cfg(test)]
mod tests {
    use prost::Name;

    #[test]
    fn constants_name_the_messages() {
        assert_eq!(super::RUNC_OPTIONS, crate::runc_options::Options::full_name());
        assert_eq!(super::RUNC_CHECKPOINT_OPTIONS, crate::runc_options::CheckpointOptions::full_name());
        assert_eq!(super::RUNC_PROCESS_DETAILS, crate::runc_options::ProcessDetails::full_name());
        assert_eq!(super::RUNTIME_OPTIONS, crate::runtimeoptions::v1::Options::full_name());
        assert_eq!(super::CGROUPS_V1_METRICS, crate::cgroups_v1::Metrics::full_name());
        assert_eq!(super::CGROUPS_V2_METRICS, crate::cgroups_v2::Metrics::full_name());
    }
}
