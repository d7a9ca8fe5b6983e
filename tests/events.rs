//! The stream of events as its subscribers see it: containerd's as it is, and resumed behind a cursor.

#[path = "plain.rs"]
mod plain;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api_grpc::services::events::{PublishRequest, SubscribeRequest};
use api_grpc::services::tasks::{DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest};
use api_grpc::types::Envelope;
use client::Client;
use testkit::{DEADLINE, Daemon};
use tonic::{Code, Request, Status, Streaming};

/// A start that failed says so to those who wait; the next one has an end of its own, told by Wait and by the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_at_the_second_try_tells_its_own_end() {
    let daemon = Daemon::start("again");
    let client = connect(&daemon).await;
    let root = plain::root(daemon.directory());
    let spec = plain::spec(&root, &format!("{}/c", daemon.cgroup()), &["sleep", "100000"]);
    plain::run(&client, "c", &spec, "").await.unwrap();
    let process = r#"{"args":["/bin/late"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#;
    let spec = prost_types::Any { type_url: api_grpc::type_url::PROCESS.into(), value: process.into() };
    let (container_id, exec_id) = ("c".to_owned(), "e".to_owned());
    let exec = ExecProcessRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        spec: Some(spec),
        ..ExecProcessRequest::default()
    };
    client.tasks().exec(exec).await.unwrap();
    let start = StartRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
    let wait = WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
    client.tasks().start(start.clone()).await.unwrap_err();
    assert_eq!(client.tasks().wait(wait.clone()).await.unwrap().into_inner().exit_status, 0);
    let program = root.join("bin/late");
    std::fs::write(&program, "#!/bin/sh\nsleep 0.3\nexit 7\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut events =
        client.events().subscribe(SubscribeRequest { filters: vec!["topic~=|^/tasks/exit|".into()] }).await.unwrap();
    client.tasks().start(start).await.unwrap();
    assert_eq!(client.tasks().wait(wait.clone()).await.unwrap().into_inner().exit_status, 7);
    let told = next(events.get_mut()).await.unwrap().event.unwrap();
    let told: api_grpc::events::TaskExit = api_grpc::decode::unpack(&api_grpc::decode::any(told)).unwrap();
    assert_eq!((told.id.as_str(), told.exit_status), ("e", 7));
    client.tasks().delete_process(DeleteProcessRequest { container_id: container_id.clone(), exec_id }).await.unwrap();
    client.tasks().kill(KillRequest { container_id, signal: 9, ..KillRequest::default() }).await.unwrap();
    client.tasks().wait(WaitRequest { exec_id: String::new(), ..wait }).await.unwrap();
    plain::remove(&client, "c").await.unwrap();
}

async fn connect(daemon: &Daemon) -> Client {
    Client::connect(Path::new(&daemon.address()), "default").await.unwrap()
}

/// Subscribes with the header, if there is one; tells as well where the stream begins.
async fn subscribe(client: &Client, since: Option<&str>) -> Result<(Streaming<Envelope>, String), Status> {
    let mut request = Request::new(SubscribeRequest { filters: vec!["topic~=|^/test/|".into()] });
    if let Some(since) = since {
        request.metadata_mut().insert("gantry-events-since", since.parse().unwrap());
    }
    let answer = client.events().subscribe(request).await?;
    let begin = answer.metadata().get("gantry-events-cursor").map(|value| value.to_str().unwrap().to_owned());
    Ok((answer.into_inner(), begin.unwrap_or_default()))
}

async fn publish(client: &Client, name: &str, bytes: usize) {
    let event = prost_types::Any { type_url: "test.Bytes".into(), value: vec![7; bytes] };
    client.events().publish(PublishRequest { topic: format!("/test/{name}"), event: Some(event) }).await.unwrap();
}

async fn next(stream: &mut Streaming<Envelope>) -> Result<Envelope, Status> {
    let message = tokio::time::timeout(DEADLINE, stream.message()).await.expect("an event in time");
    message.map(|message| message.expect("the stream goes on"))
}

fn sequence(cursor: &str) -> u64 {
    cursor.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_resumes_behind_its_cursor_across_a_kill() {
    let mut daemon = Daemon::start("cursors");
    let client = connect(&daemon).await;
    let (mut plain, none) = subscribe(&client, None).await.unwrap();
    let (mut counting, begin) = subscribe(&client, Some("now")).await.unwrap();
    assert_eq!(none, "", "containerd's clients get no header that they did not ask for");
    for name in ["one", "two", "three"] {
        publish(&client, name, 1).await;
    }
    for _ in 0..3 {
        assert_eq!(next(&mut plain).await.unwrap().cursor, "");
    }
    let first = next(&mut counting).await.unwrap();
    assert_eq!((first.topic.as_str(), sequence(&first.cursor)), ("/test/one", sequence(&begin) + 1));
    drop((plain, counting, client));

    daemon.kill();
    daemon.launch().unwrap();
    let client = connect(&daemon).await;
    publish(&client, "four", 1).await;
    let (mut counting, again) = subscribe(&client, Some(&first.cursor)).await.unwrap();
    assert_eq!(again, first.cursor);
    for (name, distance) in [("two", 1), ("three", 2), ("four", 3)] {
        let envelope = next(&mut counting).await.unwrap();
        assert_eq!(envelope.topic, format!("/test/{name}"));
        assert_eq!(sequence(&envelope.cursor), sequence(&first.cursor) + distance);
    }
    // The journal is older than the subscriber: its beginning is known.
    let (mut from_the_start, _) = subscribe(&client, Some(&begin)).await.unwrap();
    assert_eq!(next(&mut from_the_start).await.unwrap(), first);

    for (wrong, code) in [
        ("nonsense", Code::InvalidArgument),
        ("00000000-0000-0000-0000-000000000000:1", Code::OutOfRange),
        (&*format!("{}99", first.cursor), Code::OutOfRange),
    ] {
        let status = subscribe(&client, Some(wrong)).await.unwrap_err();
        assert_eq!(status.code(), code, "{wrong}: {}", status.message());
        if code == Code::OutOfRange {
            let uuid = first.cursor.rsplit_once(':').unwrap().0;
            assert!(status.message().contains(&format!("{uuid}:0")), "{}", status.message());
        }
    }
}

/// A client that does not read is told so; the daemon neither waits for it nor keeps everything for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_stream_is_resource_exhausted() {
    let daemon = Daemon::start("slow");
    let client = connect(&daemon).await;
    for since in [None, Some("now")] {
        let (mut slow, _) = subscribe(&client, since).await.unwrap();
        let publisher = connect(&daemon).await;
        for _ in 0..24 {
            publish(&publisher, "large", 1 << 20).await;
        }
        let mut read = 0;
        let status = loop {
            match next(&mut slow).await {
                Ok(_) => read += 1,
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::ResourceExhausted, "after {read}: {}", status.message());
        assert!(read < 24, "{read}");
    }
}

#[test]
fn gantryctl_resumes() {
    let daemon = Daemon::start("since");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begin = runtime.block_on(async {
        let client = connect(&daemon).await;
        let (_, begin) = subscribe(&client, Some("now")).await.unwrap();
        publish(&client, "one", 1).await;
        publish(&client, "two", 1).await;
        begin
    });
    let address = daemon.address();
    let gantryctl = testkit::binary("gantryctl");
    // It follows the stream for ever.
    let program = gantryctl.to_string_lossy();
    let words =
        ["--preserve-status", "2", &program, "--address", &address, "events", "--since", &begin, "topic~=|^/test/|"];
    let printed = testkit::run("timeout", &words).unwrap().stdout;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2, "{printed}");
    for (line, (name, distance)) in lines.iter().zip([("/test/one", 1), ("/test/two", 2)]) {
        let mut columns = line.split(' ');
        assert_eq!(sequence(columns.next().unwrap()), sequence(&begin) + distance);
        assert!(line.contains(name), "{line}");
    }
    let wrong = daemon.ctl(&["events", "--since", "nonsense"]);
    assert!(wrong.code != 0 && wrong.stderr.contains("is no cursor"), "{}", wrong.text());
}
