use std::collections::BTreeMap;

use api_grpc::services::mounts as api;
use api_grpc::services::mounts::mounts_server::Mounts;
use api_grpc::{decode, encode, types};
use futures::stream;
use metadata::{Collectible, Member, Scope};
use model::filter::Filters;
use model::{Any, Code, Coded as _, Mount, Namespace};
use mounts::{Activate, Activation, Manager};
use tonic::{Request, Response, Status};

use crate::engines::ReplyStream;
use crate::request::{namespaced, scoped};
use crate::{Engines, Error};

/// The service `Mounts`: mounts that the daemon makes on the host.
pub(crate) struct MountsService {
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl Mounts for MountsService {
    type ListStream = ReplyStream<api::ListMessage>;

    async fn activate(
        &self,
        request: Request<api::ActivateRequest>,
    ) -> Result<Response<api::ActivateResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let activate = Activate {
            namespace: scope.namespace.as_str().to_owned(),
            name: request.name,
            mounts: decode::mounts(request.mounts),
            labels: request.labels,
            lease: scope.lease.clone(),
            temporary: request.temporary,
            allowed: Vec::new(),
        };
        self.engines.metadata(move |metadata| metadata.leases().check(&scope)).await?;
        let manager = self.engines.mounts.clone();
        let activation = self.engines.lengthy.run(move || manager.activate(activate)).await?;
        Ok(Response::new(api::ActivateResponse { info: Some(encode_activation(activation)) }))
    }

    async fn deactivate(&self, request: Request<api::DeactivateRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let manager = self.engines.mounts.clone();
        self.engines.lengthy.run(move || manager.deactivate(namespace.as_str(), &request.name)).await?;
        Ok(Response::new(()))
    }

    async fn info(&self, request: Request<api::InfoRequest>) -> Result<Response<api::InfoResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let manager = self.engines.mounts.clone();
        let activation = self.engines.lengthy.run(move || manager.info(namespace.as_str(), &request.name)).await?;
        Ok(Response::new(api::InfoResponse { info: Some(encode_activation(activation)) }))
    }

    /// Changes labels; containerd does not serve this.
    async fn update(&self, request: Request<api::UpdateRequest>) -> Result<Response<api::UpdateResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let info = request.info.ok_or(Error::Required("info"))?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let manager = self.engines.mounts.clone();
        let update = move || manager.update(namespace.as_str(), &info.name, &info.labels, &mask);
        let updated = self.engines.lengthy.run(update).await?;
        Ok(Response::new(api::UpdateResponse { info: Some(encode_activation(updated)) }))
    }

    /// Those that match; fields are `name` and `labels.*`.
    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let mut found = self.engines.mounts.list(namespace.as_str());
        found.retain(|activation| filters.matches(|path| field(activation, path)));
        let messages = found.into_iter().map(|found| Ok(api::ListMessage { info: Some(encode_activation(found)) }));
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }
}

fn field(activation: &Activation, path: &[&str]) -> Option<String> {
    match path {
        ["name"] => Some(activation.name.clone()),
        ["labels", rest @ ..] => model::filter::label(&activation.labels, rest).map(str::to_owned),
        _ => None,
    }
}

fn encode_activation(activation: Activation) -> types::ActivationInfo {
    let active = activation.active.into_iter().map(|active| types::ActiveMount {
        mount: Some(encode::mount(active.mount)),
        mounted_at: encode::timestamp(active.mounted_at),
        mount_point: active.mount_point,
        data: BTreeMap::new(),
    });
    types::ActivationInfo {
        name: activation.name,
        active: active.collect(),
        system: encode::mounts(activation.system),
        labels: activation.labels,
    }
}

/// Lets the collector decide how long mounts live.
#[derive(Clone, Debug)]
pub struct MountKeeper(pub Manager);

impl Collectible for MountKeeper {
    fn kind(&self) -> &'static str {
        "mount"
    }

    fn members(&self) -> Vec<Member> {
        self.0.sweep();
        let member = |(namespace, lease, activation): (String, Option<String>, Activation)| Member {
            namespace,
            id: activation.name,
            lease,
            labels: activation.labels,
        };
        self.0.records().into_iter().map(member).collect()
    }

    fn remove(&self, garbage: &[(String, String)]) {
        for (namespace, name) in garbage {
            // Somebody may have been faster.
            if let Err(error) = self.0.deactivate(namespace, name)
                && error.code() != Code::NotFound
            {
                tracing::warn!(namespace, name, error = %model::render(&error), "mounts cannot be removed yet");
            }
        }
    }
}

/// Annotation of a shim that makes some types of mounts by itself.
const ALLOWED: &str = "containerd.io/runtime-allow-mounts";
/// Label that keeps mounts for as long as there is the container.
const OF_CONTAINER: &str = "containerd.io/gc.bref.container";

/// The root file system of a task.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// What its shim has to mount.
    pub(crate) mounts: Vec<Mount>,
    /// Mounts were made for it just now: [`release`] undoes them if there will be no task.
    pub(crate) activated: bool,
}

/// Makes the mounts of a task that need help, under the task's id. Those that are active already are used again.
pub(crate) async fn prepare(
    engines: &Engines,
    scope: &Scope,
    id: &str,
    mounts: Vec<Mount>,
    (runtime, options): (&str, Option<Any>),
) -> Result<Rootfs, Status> {
    if !mounts::needs_help(&mounts) {
        return Ok(Rootfs { mounts, activated: false });
    }
    let activate = Activate {
        namespace: scope.namespace.as_str().to_owned(),
        name: id.to_owned(),
        mounts: mounts.clone(),
        labels: [(OF_CONTAINER.to_owned(), id.to_owned())].into(),
        lease: scope.lease.clone(),
        temporary: false,
        allowed: allowed(engines, runtime, options).await,
    };
    let (manager, namespace, name) = (engines.mounts.clone(), scope.namespace.clone(), id.to_owned());
    let scope = scope.clone();
    engines.metadata(move |metadata| metadata.leases().check(&scope)).await?;
    let activated = engines.lengthy.run_plain(move || match manager.activate(activate) {
        Err(mounts::Error::Exists(_)) => manager.info(namespace.as_str(), &name).map(|found| (found, false)),
        result => result.map(|made| (made, true)),
    });
    match activated.await? {
        Ok((activation, activated)) => Ok(Rootfs { mounts: activation.system, activated }),
        Err(mounts::Error::NotNeeded) => Ok(Rootfs { mounts, activated: false }),
        Err(error) => Err(api_grpc::status(&error)),
    }
}

/// The types that a runtime's shim mounts by itself. Ours leaves them to the daemon.
async fn allowed(engines: &Engines, runtime: &str, options: Option<Any>) -> Vec<String> {
    if ["io.containerd.runc.v2", "io.containerd.gantry.v2"].contains(&runtime) {
        return Vec::new();
    }
    match engines.supervisor.runtime_info(runtime, options).await {
        Ok(info) => {
            let types = info.annotations.get(ALLOWED).map(String::as_str).unwrap_or_default();
            types.split(',').map(|kind| kind.trim().to_owned()).filter(|kind| !kind.is_empty()).collect()
        }
        Err(error) => {
            tracing::warn!(runtime, error = %model::render(&error), "a runtime does not say what it mounts");
            Vec::new()
        }
    }
}

/// Undoes the mounts of a task. What cannot be undone now is left to the collector.
pub(crate) async fn release(engines: &Engines, namespace: &Namespace, id: &str) {
    if engines.mounts.is_free(namespace.as_str(), id) {
        return;
    }
    let (manager, scope, name) = (engines.mounts.clone(), namespace.clone(), id.to_owned());
    let released = engines.lengthy.run_plain(move || manager.deactivate(scope.as_str(), &name)).await;
    match released {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.code() == Code::NotFound => {}
        Ok(Err(error)) => tracing::warn!(id, error = %model::render(&error), "mounts of a task are left over"),
        Err(status) => tracing::warn!(id, %status, "mounts of a task are left over"),
    }
}
