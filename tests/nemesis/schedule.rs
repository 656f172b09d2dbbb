//! The faults, and the schedule that a seed stands for.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillClient,
    StopClient,
    /// Nothing passes between the host of some clients and the servers.
    CutClient,
    /// Nothing comes from the clients to the servers, or from the servers to the clients.
    SilenceClient,
    DeafenClient,
    /// Nothing passes between the host of some clients and one server.
    CutOne,
    /// Nothing passes between one server and the others.
    CutServer,
    /// The packets of a host wait in a long queue.
    SlowHost,
    /// What servers say to the host of some clients comes later and later, and then nothing passes any more.
    DyingLink,
    /// A host loses packets.
    LossyHost,
    KillMember,
    KillMajority,
    StopMember,
    /// The disk of the member that leads does not answer.
    HangDisk,
    MoveLeader,
    DeleteKey,
    RevokeLease,
    /// Some clients may do nothing with their keys any more, and somebody deletes the keys.
    RevokeRole,
    Compact,
    FillSpace,
    RestartServer,
    CrashServer,
    /// The server can write nothing any more, so it ends at the next token.
    FillDisk,
    StopServer,
    Terminate,
    Cancel,
    /// The primary ends, and the standby takes its place.
    FailOver,
    /// The standby takes the place of a primary that goes on.
    PromoteBeside,
    /// What is between: a pool or a proxy.
    KillProxy,
    StopProxy,
}

/// What has faults of its own, beside the others.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lane {
    Clients,
    Cuts,
    Traffic,
    Servers,
    Administrator,
}

pub(crate) const OF_CLIENTS: &[Fault] = &[Fault::KillClient, Fault::StopClient];

pub(crate) const OF_CUTS: &[Fault] = &[
    Fault::CutClient,
    Fault::CutClient,
    Fault::SilenceClient,
    Fault::SilenceClient,
    Fault::DeafenClient,
    Fault::DeafenClient,
    Fault::CutOne,
    Fault::CutServer,
];

pub(crate) const OF_TRAFFIC: &[Fault] = &[Fault::SlowHost, Fault::LossyHost, Fault::DyingLink, Fault::DyingLink];

#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    pub(crate) fault: Fault,
    /// Which of those that it can hit.
    pub(crate) target: usize,
}

/// The steps of a lane. A longer campaign begins with those of a shorter one.
pub(crate) fn steps(seed: u64, lane: Lane, faults: &[Fault], length: Duration) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(seed.wrapping_add(lane as u64));
    let (mut steps, mut at) = (Vec::new(), Duration::ZERO);
    if faults.is_empty() {
        return steps;
    }
    loop {
        at += Duration::from_millis(random.u64(300..2_500));
        // Some are short, and most are longer than most leases.
        let lasts = if random.u8(..3) == 0 { random.u64(50..1_000) } else { random.u64(2_000..10_000) };
        let (fault, target) = (faults[random.usize(..faults.len())], random.usize(..1_000));
        // Whoever had a late answer has to wait for the end of its lease.
        let lasts = if fault == Fault::DyingLink { 7_000 } else { lasts };
        let lasts = Duration::from_millis(lasts);
        if at + lasts > length {
            return steps;
        }
        steps.push(Step { at, lasts, fault, target });
        at += lasts;
    }
}
