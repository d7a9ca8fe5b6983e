//! What every daemon does with every shim and every runtime.

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use testkit::{Output, eventually};

use crate::house::House;

/// A group of two containers has one shim.
const GROUP: &str = "io.containerd.runc.v2.group=pair";

/// All eight.
pub fn all(house: &mut House) {
    run(house);
    exec(house);
    pty(house);
    kill(house);
    pause(house);
    restart(house);
    shim_kill(house);
    group(house);
}

fn run(house: &House) {
    assert_eq!(house.run("hello", &["--rm"], &["echo", "hello"]).ok().stdout, "hello\n");
    assert_eq!(house.run("code", &["--rm"], &["sh", "-c", "exit 42"]).code, 42);
    let missing = house.run("missing", &["--rm"], &["/no/such/program"]);
    assert!(missing.code != 0 && says_absent(&missing), "{}", missing.text());
    // What failed has left nothing, so its name is free.
    house.run("missing", &["--rm"], &["true"]).ok();
    // To a file: ctr itself may close a FIFO before it has read all of it.
    let log = house.directory().join("lines.log");
    let uri = format!("file://{}", log.display());
    house.run("lines", &["-d", "--log-uri", &uri], &["sh", "-c", "yes 0123456789abcde | head -n 20000"]).ok();
    house.until("lines", "STOPPED");
    assert_eq!(house.remove("lines"), 0);
    assert_eq!(std::fs::metadata(log).unwrap().len(), 20_000 * 16, "no byte of the output is lost");
    logging(house);
}

/// A program that gets both outputs.
fn logging(house: &House) {
    let (program, log) = (house.directory().join("logger"), house.directory().join("logged"));
    let script = "#!/bin/sh\nexec 5>&-\ncat <&4 > $2.err &\ncat <&3 > $2.out\nwait\n\
        echo $CONTAINER_NAMESPACE $CONTAINER_ID > $2\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?log={}", program.display(), log.display());
    house.run("logs", &["-d", "--log-uri", &uri], &["sh", "-c", "echo out; echo err >&2"]).ok();
    house.until("logs", "STOPPED");
    assert_eq!(house.remove("logs"), 0);
    let read = |name: &str| std::fs::read_to_string(house.directory().join(name)).unwrap_or_default();
    eventually("the program has read all", || {
        let found = (read("logged.out"), read("logged.err"));
        if found == ("out\n".to_owned(), "err\n".to_owned()) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

fn exec(house: &House) {
    house.run("exec", &["-d"], &["sleep", "1000"]).ok();
    let exec = house.ctr(&["task", "exec", "--exec-id", "e", "exec", "sh", "-c", "echo in; exit 3"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (3, "in\n"), "{}", exec.text());
    let missing = house.ctr(&["task", "exec", "--exec-id", "m", "exec", "/nope"]);
    assert!(missing.code != 0 && says_absent(&missing), "{}", missing.text());
    let pids = house.ctr(&["task", "ps", "exec"]).ok().stdout;
    assert_eq!(pids.lines().count(), 2, "a header and one process:\n{pids}");
    house.ctr(&["task", "kill", "--signal", "SIGKILL", "exec"]).ok();
    house.until("exec", "STOPPED");
    assert_eq!(house.remove("exec"), 137);
}

fn pty(house: &House) {
    let mut terminal = house.run_on_terminal("pty", &["sh"]);
    terminal.expect("# ");
    terminal.send("test -t 0 && echo it is a $(echo terminal)\n").unwrap();
    terminal.expect("it is a terminal");
    eventually("the terminal inside has the new size", || {
        // ctr listens for changes only after the start, and only changes are told.
        for (columns, rows) in [(90, 20), (100, 30)] {
            terminal.resize(columns, rows).map_err(|error| error.to_string())?;
        }
        terminal.send("stty size\n").map_err(|error| error.to_string())?;
        if terminal.sees("30 100", std::time::Duration::from_millis(200)) { Ok(()) } else { Err("the old size".into()) }
    });
    terminal.send("exit 5\n").unwrap();
    let (code, output) = terminal.finish().unwrap();
    assert_eq!(code, 5, "{output}");
}

fn kill(house: &House) {
    let obedient = "trap 'exit 6' TERM; while :; do sleep 0.05; done";
    for (id, signal, code) in [("term", "SIGTERM", 6), ("kill", "SIGKILL", 137)] {
        house.run(id, &["-d"], &["sh", "-c", obedient]).ok();
        // The shell may not have come to its trap yet.
        eventually("the shell obeys", || {
            house.ctr(&["task", "kill", "--signal", signal, id]);
            match house.task(id) {
                Some((_, status)) if status == "STOPPED" => Ok(()),
                found => Err(format!("{found:?}")),
            }
        });
        let code_seen = house.remove(id);
        assert!(code_seen == code || (signal == "SIGTERM" && code_seen == 143), "{id}: {code_seen}");
    }
}

fn pause(house: &House) {
    house.run("pause", &["-d"], &["sleep", "1000"]).ok();
    house.ctr(&["task", "pause", "pause"]).ok();
    assert_eq!(house.task("pause").unwrap().1, "PAUSED");
    house.ctr(&["task", "resume", "pause"]).ok();
    assert_eq!(house.task("pause").unwrap().1, "RUNNING");
    assert!(house.ctr(&["task", "metrics", "pause"]).ok().stdout.contains("memory"));
    house.ctr(&["task", "kill", "--signal", "SIGKILL", "pause"]).ok();
    house.until("pause", "STOPPED");
    assert_eq!(house.remove("pause"), 137);
}

fn restart(house: &mut House) {
    house.run("stays", &["-d"], &["sleep", "1000"]).ok();
    house.run("frozen", &["-d"], &["sleep", "1000"]).ok();
    house.ctr(&["task", "pause", "frozen"]).ok();
    house.run("ends", &["-d"], &["sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 7"]).ok();
    let (pid, _) = house.task("ends").unwrap();
    let root = format!("/proc/{pid}/root/go");
    house.kill_daemon();
    std::fs::write(root, "").unwrap();
    eventually("the container has ended", || if alive(pid) { Err("it lives".to_owned()) } else { Ok(()) });
    house.launch_daemon();
    assert_eq!(house.task("stays").unwrap().1, "RUNNING");
    assert_eq!(house.task("frozen").unwrap().1, "PAUSED");
    if house.is_gantry() {
        house.until("ends", "STOPPED");
        assert_eq!(house.remove("ends"), 7, "what ended meanwhile is known");
    } else {
        println!("containerd says of a task that ended while it was down: {:?}", house.task("ends"));
        house.ctr(&["task", "rm", "ends"]);
        house.ctr(&["container", "rm", "ends"]);
    }
    let exec = house.ctr(&["task", "exec", "--exec-id", "e", "stays", "sh", "-c", "echo again; exit 4"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (4, "again\n"), "{}", exec.text());
    house.ctr(&["task", "resume", "frozen"]).ok();
    for id in ["stays", "frozen"] {
        house.ctr(&["task", "kill", "--signal", "SIGKILL", id]).ok();
        house.until(id, "STOPPED");
        assert_eq!(house.remove(id), 137);
    }
}

fn shim_kill(house: &House) {
    house.run("orphan", &["-d"], &["sleep", "1000"]).ok();
    let (pid, _) = house.task("orphan").unwrap();
    let socket = house.socket("orphan");
    // Those of tasks before may be on their way out.
    let shim = eventually("one task, one shim", || match house.shims().as_slice() {
        [shim] => Ok(*shim),
        shims => Err(format!("{shims:?}")),
    });
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    eventually(
        "the container of a dead shim is killed",
        || if alive(pid) { Err("it lives".to_owned()) } else { Ok(()) },
    );
    if house.is_gantry() {
        house.until("orphan", "STOPPED");
        assert_eq!(house.remove("orphan"), 137);
        assert!(!socket.is_some_and(|socket| socket.exists()), "the dead shim's socket is gone");
    } else {
        eventually("the task is gone", || house.task("orphan").map_or(Ok(()), |task| Err(format!("{task:?}"))));
        house.ctr(&["container", "rm", "orphan"]).ok();
        if let Some(socket) = socket.filter(|socket| socket.exists()) {
            println!("containerd leaves the socket of a killed shim behind");
            std::fs::remove_file(socket).unwrap();
        }
    }
}

fn group(house: &House) {
    for id in ["first", "second"] {
        house.run(id, &["-d", "--annotation", GROUP], &["sleep", "1000"]).ok();
    }
    assert_eq!(house.shims().len(), 1, "both have one shim");
    let socket = house.socket("second").expect("the shim notes its socket");
    let end = |id: &str| {
        house.ctr(&["task", "kill", "--signal", "SIGKILL", id]).ok();
        house.until(id, "STOPPED");
        assert_eq!(house.remove(id), 137);
    };
    end("first");
    assert_eq!(house.task("second").unwrap().1, "RUNNING");
    let exec = house.ctr(&["task", "exec", "--exec-id", "e", "second", "sh", "-c", "echo still; exit 5"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (5, "still\n"), "{}", exec.text());
    // The shim takes a new one after its first is gone.
    house.run("third", &["-d", "--annotation", GROUP], &["sleep", "1000"]).ok();
    assert_eq!(house.shims().len(), 1);
    end("second");
    end("third");
    eventually("the shim ends with its last container", || {
        let shims = house.shims();
        if shims.is_empty() && !socket.exists() { Ok(()) } else { Err(format!("{shims:?} {}", socket.display())) }
    });
}

/// Runtimes write it with a capital letter or without.
fn says_absent(output: &Output) -> bool {
    output.text().to_lowercase().contains("no such file or directory")
}

/// Whether a process is there and no zombie.
fn alive(pid: i32) -> bool {
    let there = Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok());
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    there && !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}
