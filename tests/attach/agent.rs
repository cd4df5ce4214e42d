//! The whole agent: what is lost is back in two seconds, and said until then.

use std::{
    fs,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    kernel, probe, wait_for,
};

use crate::{
    bpf, foreign,
    stage::{SOON, Stage},
};

/// A status of the agent, and its text where it is not well.
fn status(agent: &Agent<'_>) -> (Vec<String>, String) {
    let status = agent.json(Path::new(env!("CARGO_BIN_EXE_blocker")), &["status"]).unwrap();
    let texts = |list: &serde_json::Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    (texts(&status["backend"]["attachments"]), texts(&status["degraded"]).join("; "))
}

/// Detection and mending together.
const MENDED_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn an_agent_mends_within_two_seconds_and_says_degraded_until_then() {
    let test = "an_agent_mends_within_two_seconds_and_says_degraded_until_then";
    let Some(stage) = Stage::new(test) else { return };
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let (host, peer) = (&stage.host, &stage.peer);
    let wire = || {
        host.link("eth0", peer, "eth0").unwrap();
        host.ip("addr add 198.51.100.1/24 dev eth0").unwrap();
        peer.ip("addr add 198.51.100.66/24 dev eth0").unwrap();
    };
    wire();
    let scratch = Scratch::new("mends").unwrap();
    let mut agent = Agent::new(&scratch, host, Backend::Xdp);
    agent.interfaces("\"auto\"");
    agent.enforce("modes = [\"native\", \"generic\"]");
    agent.jail("sshd", &scratch.join("auth.log"), "");
    agent.start(binary).unwrap();
    agent.cli(binary, &["ban", "198.51.100.66"]).unwrap();
    let reached = || probe::ping(peer, "198.51.100.1".parse().unwrap());
    assert!(!reached());
    let pin = |name: &str| {
        let folder = fs::read_dir(agent.pins()).unwrap().next().unwrap().unwrap().path();
        let index = host.ip(&format!("-o link show {name}")).unwrap();
        folder.join(format!("link-{}-native", index.split(':').next().unwrap()))
    };
    let is_well = |name: &str| {
        let (attached, degraded) = status(&agent);
        (attached == [format!("{name}: native")] && degraded.is_empty() && pin(name).exists()).then_some(())
    };
    let again = || {
        host.ip("link del eth0").unwrap();
        wire();
    };
    let rename = || {
        for command in ["link set eth0 down", "link set eth0 name wan0", "link set wan0 up"] {
            host.ip(command).unwrap();
        }
    };
    let away_and_back = || {
        host.ip(&format!("link set wan0 name away0 netns {}", peer.name())).unwrap();
        peer.ip(&format!("link set away0 name back0 netns {}", host.name())).unwrap();
        host.ip("addr add 198.51.100.1/24 dev back0").unwrap();
        host.ip("link set back0 up").unwrap();
    };
    let cases: [(&str, &str, &dyn Fn()); 5] = [
        ("its link is detached", "eth0", &|| foreign::detach(&pin("eth0")).unwrap()),
        ("its pin is removed", "eth0", &|| fs::remove_file(pin("eth0")).unwrap()),
        ("its interface is deleted and made again", "eth0", &again),
        ("its interface is renamed", "wan0", &rename),
        ("its interface goes to another namespace and comes back", "back0", &away_and_back),
    ];
    for (what, name, sabotage) in cases {
        sabotage();
        let begun = Instant::now();
        let mended = wait_for(kernel::patience(SOON), || is_well(name));
        let took = begun.elapsed();
        let (attached, degraded) = status(&agent);
        assert!(
            mended.is_some() && took < kernel::patience(MENDED_WITHIN),
            "{what}: {attached:?} {degraded} after {took:?}"
        );
        assert!(!reached(), "{what}");
        println!("{what}: mended after {} ms; {}", took.as_millis(), attached.join(", "));
    }
    // Somebody takes the place of what was detached: it is not driven out, and the agent says so until it goes.
    foreign::detach(&pin("back0")).unwrap();
    let taken = wait_for(SOON, || {
        let pass = bpf::floor(bpf::XDP_PASS, 0);
        let _busy = foreign::detach(&pin("back0"));
        host.enter(|| foreign::attach(pass.as_fd(), "back0", foreign::XDP_FLAGS_DRV_MODE)).ok()
    });
    let degraded =
        wait_for(SOON, || Some(status(&agent).1).filter(|degraded| degraded.contains("another program")));
    println!("a foreign program in its place: DEGRADED: {}", degraded.as_deref().unwrap_or("not said"));
    assert!(taken.is_some() && degraded.is_some() && reached());
    drop(taken);
    let begun = Instant::now();
    assert!(wait_for(SOON, || is_well("back0")).is_some(), "{:?}", status(&agent));
    println!("the foreign program is gone: mended after {} ms", begun.elapsed().as_millis());
    assert!(!reached());
    agent.cli(binary, &["unban", "198.51.100.66"]).unwrap();
    assert!(reached());
}
