//! The shim's side of the wire: ttrpc on a unix socket, and the messages that travel on it.
//!
//! * [`Server`] serves one implementation of [`Task`] as `containerd.task.v3.Task` and as `containerd.task.v2.Task`, whose
//!   messages are the same, so that daemons of both generations find what they ask for.
//! * [`Forwarder`] hands events to a daemon that is not ours (`containerd.services.events.ttrpc.v1.Events`).
//! * [`status`] turns an error of ours into the status that Go clients rebuild the class of an error from.
//! * [`convert`] translates between the messages and the vocabulary of `model`.
//!
//! **Invariant:** everything here runs on the caller's thread. The synchronous half of ttrpc, which has thread pools,
//! is never touched, and no call blocks: a connection that cannot be made at once is an error.

pub mod convert;
mod forward;
mod server;
mod status;

pub use forward::{ForwardError, Forwarder};
pub use server::{Server, ServerError};
pub use status::{status, unimplemented};

pub use containerd_shim_protos::shim_async::Task;
pub use ttrpc::r#async::TtrpcContext;

/// The generated messages.
pub mod messages {
    pub use containerd_shim_protos::api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, ForwardRequest, KillRequest, Mount, PauseRequest,
        PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
        StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
        WaitRequest, WaitResponse,
    };
    pub use containerd_shim_protos::shim::event::Envelope;
    pub use containerd_shim_protos::shim::oci::{Options, ProcessDetails};
    pub use protobuf::well_known_types::any::Any;
    pub use protobuf::well_known_types::timestamp::Timestamp;

    /// What a daemon tells a shim that it starts, and what the shim answers.
    pub mod bootstrap {
        pub use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
    }

    /// Payloads of the events of a task.
    pub mod events {
        pub use containerd_shim_protos::events::task::{
            TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
            TaskStart,
        };
    }

    /// What a shim says about its runtime.
    pub mod info {
        pub use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
    }

    /// Statistics of a control group of version 1.
    pub mod cgroups_v1 {
        pub use containerd_shim_protos::cgroups::metrics::*;
    }

    /// Statistics of a control group of version 2.
    pub mod cgroups_v2 {
        pub use containerd_shim_protos::cgroups_v2::metrics::*;
    }
}
