//! The main job, shown on real input: everything that a first user wants to see, in the order they would try it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use testkit::{Daemon, Pty, binary, busybox_image, eventually};

use crate::{dist, setup};

const IMAGE: &str = "docker.io/library/busybox:latest";

/// Builds, runs, shows and cleans up. Every step checks what it shows, so a broken step ends the demo with an error.
pub(crate) fn demo() -> Result<()> {
    let began = Instant::now();
    setup::for_demo()?;
    say("building the four binaries");
    dist::dist()?;
    let daemon = Daemon::start("demo");
    say(&format!("gantryd serves on {}", daemon.address()));
    let events = Events::subscribe(&daemon)?;

    image(&daemon)?;
    first_container(&daemon)?;
    terminal(&daemon)?;
    limits_exec_and_kill(&daemon)?;
    say("what happened, as every subscriber saw it");
    // The second exit is the killed container's; the first belongs to the additional process.
    let exits = ["/tasks/exec-started", "/tasks/exit", "/tasks/exit", "/tasks/delete"];
    for topic in ["/containers/create", "/tasks/create", "/tasks/start"].into_iter().chain(exits) {
        println!("  {}", events.wait_for(topic)?);
    }
    drop(events);

    show(&daemon, &["image", "rm", IMAGE])?;
    say("stopping gantryd; mounts, cgroups, processes and descriptors are checked");
    drop(daemon);
    say(&format!("nothing is left behind. The demo took {} s", began.elapsed().as_secs()));
    Ok(())
}

fn image(daemon: &Daemon) -> Result<()> {
    say("an OCI image made on the spot from Debian's static busybox is imported and unpacked");
    let tar = daemon.directory().join("busybox.tar");
    busybox_image(&tar, IMAGE)?;
    show(daemon, &["image", "import", &tar.to_string_lossy()])?;
    let listed = show(daemon, &["image", "ls"])?;
    ensure!(listed.contains(IMAGE), "the image is not listed");
    Ok(())
}

fn first_container(daemon: &Daemon) -> Result<()> {
    say("a container runs: its own process tree, host name and root");
    let script = "echo hello from pid $$ on $(hostname); id; ls /";
    let output = show_run(daemon, &["--rm", "--hostname", "gantry"], "hello", &["sh", "-c", script])?;
    ensure!(output.contains("hello from pid 1 on gantry"), "the container did not say hello");
    say("its exit code is the command's exit code");
    let output =
        testkit::run(binary("gantryctl"), &borrow(&run_words(daemon, &["--rm"], "seven", &["sh", "-c", "exit 7"])))?;
    println!("  exit code {}", output.code);
    ensure!(output.code == 7, "want exit code 7: {}", output.text());
    Ok(())
}

fn terminal(daemon: &Daemon) -> Result<()> {
    say("a session on a pseudo terminal, resized while it runs");
    let words = run_words(daemon, &["--rm", "-t"], "terminal", &["sh"]);
    let mut pty = Pty::spawn(binary("gantryctl"), &borrow(&words))?;
    pty.expect("# ");
    pty.send("tty; stty size\n")?;
    pty.expect("24 80");
    pty.resize(120, 40)?;
    // The new size travels by a signal and a call; asking until it is there waits for both.
    eventually("the terminal inside has the new size", || {
        pty.send("stty size\n").map_err(|error| error.to_string())?;
        if pty.sees("40 120", Duration::from_millis(200)) { Ok(()) } else { Err("still the old size".into()) }
    });
    pty.send("exit 3\n")?;
    let (code, text) = pty.finish()?;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        println!("  | {line}");
    }
    ensure!(code == 3, "want exit code 3 from the terminal session, have {code}");
    Ok(())
}

fn limits_exec_and_kill(daemon: &Daemon) -> Result<()> {
    say("a container with limits runs in the background");
    let limits = ["-d", "--memory", "32m", "--cpus", "0.5", "--pids", "16"];
    show_run(daemon, &limits, "limited", &["sh", "-c", "echo started; exec sleep 1000"])?;
    show(daemon, &["ps"])?;
    let fifo = daemon.directory().join("fifo");
    let exec = show(daemon, &["exec", "--fifo-dir", &fifo.to_string_lossy(), "limited", "ps"])?;
    ensure!(exec.contains("sleep 1000"), "the additional process does not see the first");
    let log = show(daemon, &["logs", "limited"])?;
    ensure!(log.contains("started"), "the log is empty");
    say("the limits as the kernel has them");
    for (controller, file, want) in cgroup_files() {
        let path =
            PathBuf::from(controller).join(format!("{}/limited/{file}", daemon.cgroup().trim_start_matches('/')));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        println!("  {file} = {}", text.trim());
        ensure!(text.trim() == want, "want {want}");
    }
    say("a kill, the exit status, the removal");
    show(daemon, &["kill", "--signal", "KILL", "limited"])?;
    let status = eventually("the container is stopped", || {
        let listed = daemon.ctl(&["ps"]).stdout;
        listed.lines().find(|line| line.contains("STOPPED(137)")).map(str::to_owned).ok_or(listed)
    });
    println!("  {status}");
    show(daemon, &["rm", "limited"])?;
    Ok(())
}

/// Where this host shows the three limits: cgroup v2 in one directory, v1 in one per controller.
fn cgroup_files() -> Vec<(&'static str, &'static str, &'static str)> {
    if PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists() {
        let top = "/sys/fs/cgroup";
        return vec![(top, "memory.max", "33554432"), (top, "cpu.max", "50000 100000"), (top, "pids.max", "16")];
    }
    vec![
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "33554432"),
        ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "50000"),
        ("/sys/fs/cgroup/pids", "pids.max", "16"),
    ]
}

/// `gantryctl events`, read by a thread.
struct Events {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
}

impl Events {
    fn subscribe(daemon: &Daemon) -> Result<Self> {
        let mut child = Command::new(binary("gantryctl"))
            .args(["--address", &daemon.address(), "events"])
            .stdout(Stdio::piped())
            .spawn()
            .context("start gantryctl events")?;
        let output = child.stdout.take().context("events without output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next event of the topic; those before it are passed over.
    fn wait_for(&self, topic: &str) -> Result<String> {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(10)).with_context(|| format!("no event {topic}"))?;
            if line.split(' ').any(|word| word == topic) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(text: &str) {
    println!("\n== {text}");
}

/// Runs `gantryctl` and shows the command and its output, indented; a failure ends the demo.
fn show(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    println!("$ gantryctl {}", arguments.join(" "));
    let output = daemon.ctl(arguments);
    for line in output.text().lines() {
        println!("  {line}");
    }
    ensure!(output.code == 0, "gantryctl {}: exit code {}\n{}", arguments.join(" "), output.code, daemon.log());
    Ok(output.stdout)
}

fn run_words(daemon: &Daemon, flags: &[&str], id: &str, command: &[&str]) -> Vec<String> {
    let directory = |name: &str| daemon.directory().join(name).to_string_lossy().into_owned();
    let mut words: Vec<String> = vec!["--address".into(), daemon.address(), "run".into()];
    words.extend(["--cgroup".into(), format!("{}/{id}", daemon.cgroup())]);
    words.extend(["--fifo-dir".into(), directory("fifo"), "--log-dir".into(), directory("log")]);
    words.extend(flags.iter().map(|word| (*word).to_owned()));
    words.extend([IMAGE.to_owned(), id.to_owned()]);
    words.extend(command.iter().map(|word| (*word).to_owned()));
    words
}

fn show_run(daemon: &Daemon, flags: &[&str], id: &str, command: &[&str]) -> Result<String> {
    println!("$ gantryctl run {} {IMAGE} {id} {}", flags.join(" "), command.join(" "));
    let output = testkit::run(binary("gantryctl"), &borrow(&run_words(daemon, flags, id, command)))?;
    for line in output.text().lines() {
        println!("  {line}");
    }
    ensure!(output.code == 0, "exit code {}\n{}", output.code, daemon.log());
    Ok(output.stdout)
}

fn borrow(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
