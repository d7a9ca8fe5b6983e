//! The mount manager: mounts that containers need made, which live exactly as long as what needs them.

use std::collections::BTreeMap;
use std::path::Path;

use api_grpc::services::leases::leases_client::LeasesClient;
use api_grpc::services::leases::{CreateRequest, DeleteRequest};
use api_grpc::services::mounts::mounts_client::MountsClient;
use api_grpc::services::mounts::{ActivateRequest, DeactivateRequest, InfoRequest, ListRequest, UpdateRequest};
use api_grpc::services::tasks::tasks_client::TasksClient;
use api_grpc::services::tasks::{CreateTaskRequest, DeleteTaskRequest, KillRequest, WaitRequest};
use api_grpc::types::{ActivationInfo, Mount};
use testkit::{Daemon, eventually};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { r#type: kind.to_owned(), source: source.to_owned(), target: String::new(), options }
}

fn request<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
    if let Some(lease) = lease {
        request.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
    }
    request
}

async fn channel(daemon: &Daemon) -> Channel {
    client::Client::connect(Path::new(&daemon.address()), "default").await.unwrap().channel()
}

/// The daemon's mount points.
fn mounted(daemon: &Daemon) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(daemon.directory().join("state"))).count()
}

struct Mounts(MountsClient<Channel>);

impl Mounts {
    async fn new(daemon: &Daemon) -> Self {
        Self(MountsClient::new(channel(daemon).await))
    }

    async fn activate(
        &mut self,
        name: &str,
        mounts: Vec<Mount>,
        lease: Option<&str>,
        labels: &[(&str, &str)],
    ) -> Result<ActivationInfo, Status> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let message = ActivateRequest { name: name.to_owned(), mounts, labels, temporary: false };
        Ok(self.0.activate(request(message, lease)).await?.into_inner().info.unwrap())
    }

    async fn deactivate(&mut self, name: &str) -> Result<(), Status> {
        self.0.deactivate(request(DeactivateRequest { name: name.to_owned() }, None)).await.map(|_| ())
    }

    async fn info(&mut self, name: &str) -> Result<ActivationInfo, Status> {
        let answer = self.0.info(request(InfoRequest { name: name.to_owned() }, None)).await?;
        Ok(answer.into_inner().info.unwrap())
    }

    async fn names(&mut self, filters: &[&str]) -> Vec<String> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let mut stream = self.0.list(request(ListRequest { filters }, None)).await.unwrap().into_inner();
        let mut names = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            names.push(message.info.unwrap().name);
        }
        names
    }
}

fn layered() -> Vec<Mount> {
    let tmpfs = mount("tmpfs", "tmpfs", &["size=1m"]);
    vec![tmpfs.clone(), tmpfs, mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"])]
}

#[tokio::test(flavor = "multi_thread")]
async fn activations_live_as_long_as_what_keeps_them() {
    let mut daemon = Daemon::start("mounts");
    let mut mounts = Mounts::new(&daemon).await;
    let mut leases = LeasesClient::new(channel(&daemon).await);
    let create = CreateRequest { id: "l".to_owned(), labels: BTreeMap::new() };
    leases.create(request(create, None)).await.unwrap();

    let free = mounts.activate("free", layered(), None, &[("k", "v")]).await.unwrap();
    assert_eq!((free.active.len(), free.system.len()), (2, 1));
    assert!(free.active.iter().all(|active| active.mounted_at.is_some()));
    let (top, bottom) = (&free.active[1].mount_point, &free.active[0].mount_point);
    assert_eq!(free.system[0], mount("overlay", "overlay", &[&format!("lowerdir={top}:{bottom}")]));
    mounts.activate("leased", layered(), Some("l"), &[]).await.unwrap();
    mounts.activate("bound", layered(), None, &[("containerd.io/gc.bref.container", "nobody")]).await.unwrap();
    assert_eq!(mounts.names(&[]).await, ["bound", "free", "leased"]);
    assert_eq!(mounts.names(&["labels.k==v"]).await, ["free"]);
    let again = mounts.activate("free", layered(), None, &[]).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::AlreadyExists, "mount \"free\": already exists"));

    let update = UpdateRequest {
        info: Some(ActivationInfo {
            name: "free".into(),
            labels: [("x".into(), "y".into())].into(),
            ..Default::default()
        }),
        update_mask: None,
    };
    let updated = mounts.0.update(request(update, None)).await.unwrap().into_inner().info.unwrap();
    assert_eq!((updated.labels.len(), updated.labels.get("x").map(String::as_str)), (1, Some("y")));

    // What is active survives the daemon, with its mounts.
    daemon.kill();
    daemon.launch().unwrap();
    let (mut mounts, mut leases) = (Mounts::new(&daemon).await, LeasesClient::new(channel(&daemon).await));
    assert_eq!(mounts.info("free").await.unwrap().active, free.active);
    assert!(Path::new(top).is_dir());

    let delete = DeleteRequest { id: "l".to_owned(), sync: true };
    leases.delete(request(delete, None)).await.unwrap();
    assert_eq!(mounts.names(&[]).await, ["free"]);
    assert_eq!(mounted(&daemon), 2);
    mounts.deactivate("free").await.unwrap();
    assert_eq!(mounted(&daemon), 0);
    assert_eq!(mounts.info("free").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(mounts.deactivate("free").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_activations_leave_nothing() {
    let daemon = Daemon::start("absurd-mounts");
    let mut mounts = Mounts::new(&daemon).await;
    let tmpfs = || mount("tmpfs", "tmpfs", &[]);
    for (mounts_of, lease, code) in [
        (vec![], None, Code::Unimplemented),
        (vec![tmpfs()], None, Code::Unimplemented),
        (layered(), Some("no such lease"), Code::NotFound),
        (
            vec![tmpfs(), mount("format/overlay", "o", &["lowerdir={{ mount 99999999999999999999 }}"])],
            None,
            Code::InvalidArgument,
        ),
        (vec![tmpfs(), mount("format/overlay", "{{ if }}", &[])], None, Code::InvalidArgument),
        (vec![mount("format/".repeat(10_000).as_str(), "", &[])], None, Code::Ok),
        (vec![mount("tmpfs", "", &["X-containerd.x=1"]), mount("format/bind", "/", &[])], None, Code::InvalidArgument),
        (vec![mount("mkdir/bind", "/", &["X-containerd.mkdir.path=/etc/../etc/x"])], None, Code::Unimplemented),
        (vec![mount("mkfs/ext4", "/etc/image", &["X-containerd.mkfs.size=1M"])], None, Code::Unimplemented),
        (vec![tmpfs(); 300], None, Code::InvalidArgument),
        (vec![mount("format/overlay", "o", &["{{ x }}"; 100_000])], None, Code::InvalidArgument),
    ] {
        let outcome = mounts.activate("a", mounts_of.clone(), lease, &[]).await;
        let got = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        assert_eq!(got, code, "{:?}: {outcome:?}", mounts_of.first());
        if got == Code::Ok {
            mounts.deactivate("a").await.unwrap();
        }
        assert_eq!((mounted(&daemon), mounts.names(&[]).await.len()), (0, 0));
    }
    for name in ["", &"x".repeat(481)] {
        let refused = mounts.activate(name, layered(), None, &[]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_gets_its_mounts_and_they_go_with_it() {
    let daemon = Daemon::start("task-mounts");
    let image = daemon.import_busybox();
    daemon.ctr_run("c", &["-d"], image, &["sleep", "1000"]).ok();
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "c"]).ok();
    eventually("the task goes", || {
        let removed = daemon.ctr(&["task", "rm", "c"]);
        if removed.code == 0 { Ok(()) } else { Err(removed.stderr) }
    });
    let lower = daemon.ctr(&["snapshot", "mounts", "/x", "c"]).ok();
    // "mount -t overlay overlay /x -o options" or a bind: the words behind -t and -o.
    let words: Vec<&str> = lower.stdout.split_whitespace().collect();
    let after = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1]).unwrap();
    let options: Vec<&str> = after("-o").split(',').collect();
    let rootfs = vec![
        mount(after("-t"), words[3], &options),
        mount("tmpfs", "tmpfs", &[]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "lowerdir={{ mount 0 }}",
                "upperdir={{ mount 1 }}/up",
                "workdir={{ mount 1 }}/work",
                "X-containerd.mkdir.path={{ mount 1 }}/up:0755",
                "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
            ],
        ),
    ];
    let mut mounts = Mounts::new(&daemon).await;
    let mut tasks = TasksClient::new(channel(&daemon).await);
    let create = CreateTaskRequest { container_id: "c".to_owned(), rootfs: rootfs.clone(), ..Default::default() };
    let created = tasks.create(request(create.clone(), None)).await.unwrap().into_inner();
    assert!(created.pid > 0);
    assert_eq!(mounts.info("c").await.unwrap().active.len(), 2);
    // A second try is refused and takes nothing away from the first.
    assert_eq!(tasks.create(request(create.clone(), None)).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(mounts.info("c").await.unwrap().active.len(), 2);
    let mut waiter = tasks.clone();
    let kill = KillRequest { container_id: "c".to_owned(), signal: 9, ..Default::default() };
    tasks.kill(request(kill, None)).await.unwrap();
    let mut delete = async || tasks.delete(request(DeleteTaskRequest { container_id: "c".to_owned() }, None)).await;
    let wait = WaitRequest { container_id: "c".to_owned(), ..Default::default() };
    waiter.wait(request(wait, None)).await.unwrap();
    delete().await.unwrap();
    assert_eq!(mounts.info("c").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(mounted(&daemon), 0);

    // A task that cannot be made leaves no mounts.
    let mut broken = create.clone();
    broken.rootfs.push(mount("nonsense", "", &[]));
    broken.runtime_path = "io.containerd.none.v1".to_owned();
    tasks.create(request(broken, None)).await.unwrap_err();
    assert_eq!((mounts.names(&[]).await.len(), mounted(&daemon)), (0, 0));

    // The container goes while the mounts are there without a task.
    mounts.activate("c", layered(), None, &[("containerd.io/gc.bref.container", "c")]).await.unwrap();
    daemon.ctr(&["container", "rm", "c"]).ok();
    eventually("the mounts go", || if mounted(&daemon) == 0 { Ok(()) } else { Err("mounted".to_owned()) });
}
