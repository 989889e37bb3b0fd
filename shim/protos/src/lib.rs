//! Bindings of the containerd services that a shim serves (task, sandbox, streaming) and calls (events), and of the messages that
//! pass between containerd and a shim when it starts.
//!
//! Generated at build time from `proto/`, asynchronous half only: ttrpc's synchronous server does not compile for
//! FreeBSD, and the published bindings enable it always.
//!
//! The task service of containerd exists as `containerd.task.v2` and `containerd.task.v3`; they differ in nothing but
//! the package, so one binding serves both: see [`task_services`].

use std::{collections::HashMap, sync::Arc};

use ttrpc::asynchronous::Service;

macro_rules! generated {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $(
            $(#[$doc])*
            // Generated code is nobody's to tidy up.
            #[allow(warnings, clippy::all, clippy::pedantic)]
            pub mod $name {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
            }
        )*
    };
}

generated! {
    /// What containerd writes to the standard input of a starting shim from version 2.3 on.
    bootstrap,
    /// What is known of one process of a task.
    details,
    /// The envelope of an event.
    envelope,
    /// Messages of the service that takes events.
    events,
    /// Client of the service that takes events.
    events_ttrpc,
    /// What a shim says of itself (`-info`).
    introspection,
    /// What a sandbox uses, with time and name.
    metric,
    /// What a task uses.
    metrics,
    /// A mount as containerd describes it.
    mount,
    /// A system and its processor.
    platform,
    /// A pod as Kubernetes' Container Runtime Interface describes it.
    pod,
    /// Processes of a task and their states.
    process,
    /// Options of runc's shim, which some clients send to every shim.
    runc,
    /// Options of a runtime from containerd's configuration.
    runtimeoptions,
    /// Messages of the sandbox service.
    sandbox,
    /// Server and client of the sandbox service.
    sandbox_ttrpc,
    /// Messages of the service that clients connect to for standard streams.
    streaming,
    /// Server of the streaming service.
    streaming_ttrpc,
    /// Messages of the task service.
    task,
    /// Client and server of the task service.
    task_ttrpc,
    /// Events about tasks.
    topics,
    /// What travels in a stream.
    transfer,
}

pub use sandbox_ttrpc::{Sandbox, create_sandbox};
pub use streaming_ttrpc::{Streaming, create_streaming};
pub use task_ttrpc::{Task, TaskClient};

/// Names under which containerd calls the task service.
const TASK_SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The dispatch tables to register with a ttrpc server so that `service` answers as task v2 and as task v3.
pub fn task_services(service: &Arc<dyn Task + Send + Sync>) -> HashMap<String, Service> {
    TASK_SERVICES
        .iter()
        .flat_map(|name| {
            // The generated function makes one table under the name of the definition's own package.
            task_ttrpc::create_task(Arc::clone(service))
                .into_values()
                .map(|table| ((*name).to_owned(), table))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::{Message, MessageFull};

    struct Nothing;
    impl Task for Nothing {}

    #[test]
    fn both_versions_have_every_method() {
        let service: Arc<dyn Task + Send + Sync> = Arc::new(Nothing);
        let services = task_services(&service);
        assert_eq!(services.len(), 2);
        for name in TASK_SERVICES {
            let methods = &services[name].methods;
            assert_eq!(methods.len(), 17, "{name}");
            for method in ["State", "Create", "CloseIO", "ResizePty", "Shutdown"] {
                assert!(methods.contains_key(method), "{name}/{method}");
            }
        }
    }

    /// Type URLs of `Any` are made of these names: containerd finds its own types by them.
    #[test]
    fn full_names_are_containerds() {
        assert_eq!(topics::TaskExit::descriptor().full_name(), "containerd.events.TaskExit");
        assert_eq!(metrics::Metrics::descriptor().full_name(), "io.containerd.cgroups.v2.Metrics");
        assert_eq!(introspection::RuntimeInfo::descriptor().full_name(), "containerd.types.RuntimeInfo");
        assert_eq!(pod::PodSandboxConfig::descriptor().full_name(), "runtime.v1.PodSandboxConfig");
        assert_eq!(runc::Options::descriptor().full_name(), "containerd.runc.v1.Options");
        assert_eq!(runtimeoptions::Options::descriptor().full_name(), "runtimeoptions.v1.Options");
        assert_eq!(
            bootstrap::BootstrapParams::descriptor().full_name(),
            "containerd.runtime.bootstrap.v1.BootstrapParams"
        );
    }

    /// Bytes as containerd writes them: field 3 (rootfs), one mount, by hand.
    #[test]
    fn create_request_decodes() {
        let bytes = b"\x0a\x02c1\x12\x02/b\x1a\x0d\x0a\x04bind\x12\x02/s\x22\x01r\x20\x01";
        let request = task::CreateTaskRequest::parse_from_bytes(bytes).unwrap();
        assert_eq!((request.id.as_str(), request.bundle.as_str(), request.terminal), ("c1", "/b", true));
        assert_eq!(request.rootfs.len(), 1);
        assert_eq!(request.rootfs[0].type_, "bind");
        assert_eq!(request.rootfs[0].options, ["r"]);
    }
}
