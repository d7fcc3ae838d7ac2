//! Three node processes under load that are killed, restarted, frozen and left out of the lists.
//!
//! `examples/soak` does all of it, and checks every answer; here it runs for 20 seconds, in which
//! each of that happens to each node. It keeps the whole machine busy, so it has a binary of its own
//! and other tests do not run beside it.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;
use std::{env, thread};

use rustix::process::{Pid, Signal, kill_process};

/// Another number of seconds, if it is set.
const SECONDS: &str = "GEECACHE_TEST_RESTARTS_SECONDS";
/// How long it may take besides: to start, and to settle.
const MORE: Duration = Duration::from_secs(120);

/// What a program prints that ends within `patience`, and how. One that does not is killed.
fn output_of(command: &mut Command, patience: Duration) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (sender, output) = channel();
    thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    output.recv_timeout(patience).unwrap_or_else(|_| {
        // Its nodes end with it.
        kill_process(pid, Signal::KILL).unwrap();
        panic!("it does not end: {:?}", output.recv_timeout(patience));
    })
}

#[test]
fn no_get_fails_and_no_value_is_wrong_whatever_happens_to_the_nodes() {
    let program = env!("CARGO_BIN_EXE_soak-under-test");
    let seconds = env::var(SECONDS).unwrap_or("20".into());
    let patience = Duration::from_secs(seconds.parse().unwrap()) + MORE;
    let output = output_of(Command::new(program).args(["--seconds", &seconds]), patience);
    let summary = String::from_utf8_lossy(&output.stdout);
    println!("{summary}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let number = |name: &str| -> u64 {
        let value = summary.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not told"))
    };
    assert_eq!((number("answers wrong"), number("gets failed")), (0, 0));
    assert!(number("gets") > 1_000 && number("removals") > 10);
    for event in ["kills", "restarts", "freezes", "list changes", "nodes that stood alone"] {
        assert!(number(event) >= 3, "{event}, once for each node");
    }
    assert!(summary.contains("50 of 50 keys"), "one load for each key once things have settled");
}
