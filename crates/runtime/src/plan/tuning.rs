//! How the program is scheduled, where its memory comes from and which kernel it believes to run on.

use oci::Process;
use oci::runtime::{
    ExecCPUAffinity, IOPriorityClass, Linux, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality,
    LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType,
    Scheduler,
};
use sys::sched::{Attributes, policies};

use crate::Error;
use crate::child::Step;

/// Processors that a mask may name: the kernel takes longer masks than its own and cuts them.
const MAX_PROCESSORS: u32 = 1 << 16;
/// Memory nodes that a mask may name; no kernel is built with more (`MAX_NUMNODES`).
const MAX_NODES: u32 = 1 << 10;
/// More processors than any kernel knows (`NR_CPUS`), all of them allowed.
const ALL_PROCESSORS: [u64; 128] = [u64::MAX; 128];

/// What a document says about these things; `None` where it says nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tuning {
    pub(crate) scheduler: Option<Attributes>,
    /// Class and level as `ioprio_set(2)` takes them.
    pub(crate) io_priority: Option<u32>,
    /// Of an exec, before it is in the container's cgroup.
    pub(crate) initial_affinity: Option<Vec<u64>>,
    /// Of an exec, from then on.
    pub(crate) final_affinity: Option<Vec<u64>>,
    pub(crate) personality: Option<u32>,
    /// Mode with flags, and nodes.
    pub(crate) memory_policy: Option<(u32, Vec<u64>)>,
    /// Whether the container's processors are limited, with which no deadline can be had.
    pub(crate) limited_processors: bool,
}

impl Tuning {
    /// What the document of a process says.
    pub(crate) fn of_process(field: &str, process: &Process) -> Result<Self, Error> {
        let mut tuning = Self {
            scheduler: process.scheduler().as_ref().map(|given| scheduler(field, given)).transpose()?,
            io_priority: process.io_priority().as_ref().map(|given| io_priority(field, given)).transpose()?,
            ..Self::default()
        };
        if let Some(affinity) = process.exec_cpu_affinity() {
            (tuning.initial_affinity, tuning.final_affinity) = affinities(field, affinity)?;
        }
        Ok(tuning)
    }

    /// Adds what the container's document says for all its processes.
    pub(crate) fn add_container(&mut self, linux: Option<&Linux>) -> Result<(), Error> {
        let Some(linux) = linux else { return Ok(()) };
        self.personality = linux.personality().as_ref().map(personality).transpose()?;
        self.memory_policy = linux.memory_policy().as_ref().map(memory_policy).transpose()?;
        let cpus = linux.resources().as_ref().and_then(|resources| resources.cpu().as_ref());
        self.limited_processors = cpus.and_then(|cpu| cpu.cpus().as_ref()).is_some_and(|cpus| !cpus.is_empty());
        Ok(())
    }

    /// An additional process has what its container's first one has, unless its own document says otherwise.
    pub(crate) fn inherit(&mut self, of: &Self) {
        let own_affinity = self.initial_affinity.is_some() || self.final_affinity.is_some();
        let inherited = of.clone();
        self.scheduler = self.scheduler.or(inherited.scheduler);
        self.io_priority = self.io_priority.or(inherited.io_priority);
        if !own_affinity {
            (self.initial_affinity, self.final_affinity) = (inherited.initial_affinity, inherited.final_affinity);
        }
        self.personality = inherited.personality;
        self.memory_policy = inherited.memory_policy;
        self.limited_processors = inherited.limited_processors;
    }

    /// What is done shortly before the program, with the rights that it may not have.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let scheduler = self
            .scheduler
            .map(|attributes| Step::Scheduler { attributes, limited_processors: self.limited_processors });
        let memory = self.memory_policy.clone().map(|(mode, nodes)| Step::MemoryPolicy { mode, nodes });
        let others = [self.io_priority.map(Step::IoPriority), self.personality.map(Step::Personality), memory];
        scheduler.into_iter().chain(others.into_iter().flatten()).collect()
    }

    /// Of an exec: where it runs before it is in the cgroup.
    pub(crate) fn first_affinity(&self) -> Option<Step> {
        self.initial_affinity.clone().map(|mask| Step::Affinity { mask, vital: true })
    }

    /// Of an exec: where it runs once it is there. Without a word in any document it must not be bound to where the
    /// caller happens to be bound to.
    pub(crate) fn last_affinity(&self) -> Option<Step> {
        match (&self.initial_affinity, &self.final_affinity) {
            (_, Some(mask)) => Some(Step::Affinity { mask: mask.clone(), vital: true }),
            (Some(_), None) => None,
            (None, None) => Some(all_processors()),
        }
    }
}

/// All processors that the cgroup allows, whatever the caller is bound to.
pub(crate) fn all_processors() -> Step {
    Step::Affinity { mask: ALL_PROCESSORS.to_vec(), vital: false }
}

fn scheduler(field: &str, given: &Scheduler) -> Result<Attributes, Error> {
    let invalid = |name: &str, problem: String| Error::invalid(format!("{field}.scheduler.{name}"), problem);
    let policy = match given.policy() {
        LinuxSchedulerPolicy::SchedOther => policies::OTHER,
        LinuxSchedulerPolicy::SchedFifo => policies::FIFO,
        LinuxSchedulerPolicy::SchedRr => policies::ROUND_ROBIN,
        LinuxSchedulerPolicy::SchedBatch => policies::BATCH,
        LinuxSchedulerPolicy::SchedIdle => policies::IDLE,
        LinuxSchedulerPolicy::SchedDeadline => policies::DEADLINE,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(Error::unsupported(format!("{field}.scheduler.policy"), "no kernel implements SCHED_ISO"));
        }
    };
    let nice = given.nice().unwrap_or(0);
    if matches!(policy, policies::OTHER | policies::BATCH) && !(-20..=19).contains(&nice) {
        return Err(invalid("nice", format!("{nice} does not lie between -20 and 19")));
    }
    let priority = given.priority().unwrap_or(0);
    let real_time = matches!(policy, policies::FIFO | policies::ROUND_ROBIN);
    if !real_time && priority != 0 {
        return Err(invalid("priority", "can only be specified for SCHED_FIFO or SCHED_RR".to_owned()));
    }
    if real_time && !(1..=99).contains(&priority) {
        return Err(invalid("priority", format!("{priority} does not lie between 1 and 99")));
    }
    let times = [given.runtime(), given.deadline(), given.period()].map(|time| time.unwrap_or(0));
    for (name, time) in ["runtime", "deadline", "period"].into_iter().zip(times) {
        if policy != policies::DEADLINE && time != 0 {
            return Err(invalid(name, "can only be specified for SCHED_DEADLINE".to_owned()));
        }
    }
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let flags = given.flags().iter().flatten().fold(0, |flags, name| flags | flag(name));
    let [runtime, deadline, period] = times;
    let mut attributes = Attributes::default();
    (attributes.policy, attributes.flags) = (policy, flags);
    (attributes.nice, attributes.priority) = (nice, priority.unsigned_abs());
    (attributes.runtime, attributes.deadline, attributes.period) = (runtime, deadline, period);
    Ok(attributes)
}

fn io_priority(field: &str, given: &LinuxIOPriority) -> Result<u32, Error> {
    let class = match given.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(given.priority()).ok().filter(|level| *level <= 7).ok_or_else(|| {
        Error::invalid(
            format!("{field}.ioPriority.priority"),
            format!("{} does not lie between 0 and 7", given.priority()),
        )
    })?;
    Ok((class << 13) | level)
}

type Affinity = Option<Vec<u64>>;

fn affinities(field: &str, given: &ExecCPUAffinity) -> Result<(Affinity, Affinity), Error> {
    let parse = |name: &str, text: &Option<String>| {
        text.as_ref()
            .filter(|text| !text.is_empty())
            .map(|text| number_set(text, MAX_PROCESSORS))
            .transpose()
            .map_err(|problem| Error::invalid(format!("{field}.execCPUAffinity.{name}"), problem))
    };
    Ok((parse("initial", given.initial())?, parse("final", given.cpu_affinity_final())?))
}

fn personality(given: &LinuxPersonality) -> Result<u32, Error> {
    if given.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        // runtime-spec, config-linux: no flag values are supported yet.
        return Err(Error::unsupported("linux.personality.flags", "no flags of execution domains are supported"));
    }
    Ok(match given.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

fn memory_policy(given: &LinuxMemoryPolicy) -> Result<(u32, Vec<u64>), Error> {
    let nodes = given.nodes().as_deref().unwrap_or_default();
    let nodes = if nodes.is_empty() {
        Vec::new()
    } else {
        number_set(nodes, MAX_NODES).map_err(|problem| {
            Error::invalid("linux.memoryPolicy.nodes", format!("invalid memory policy node: {problem}"))
        })?
    };
    let count = nodes.iter().map(|word| word.count_ones()).sum::<u32>();
    let (mode, needed) = match given.mode() {
        MemoryPolicyModeType::MpolDefault => (0, Some(false)),
        MemoryPolicyModeType::MpolPreferred => (1, None),
        MemoryPolicyModeType::MpolBind => (2, Some(true)),
        MemoryPolicyModeType::MpolInterleave => (3, Some(true)),
        MemoryPolicyModeType::MpolLocal => (4, Some(false)),
        MemoryPolicyModeType::MpolPreferredMany => (5, Some(true)),
        MemoryPolicyModeType::MpolWeightedInterleave => (6, Some(true)),
    };
    match needed {
        Some(false) if count != 0 => {
            return Err(Error::invalid(
                "linux.memoryPolicy.nodes",
                format!("memory policy mode requires 0 nodes but got {count}"),
            ));
        }
        Some(true) if count == 0 => {
            return Err(Error::invalid(
                "linux.memoryPolicy.nodes",
                "memory policy mode requires at least one node but got 0",
            ));
        }
        _ => {}
    }
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    };
    Ok((given.flags().iter().flatten().fold(mode, |mode, name| mode | flag(name)), nodes))
}

/// Parses numbers and ranges with commas between them, all below `limit`, into a bit mask: `0-3,5`.
fn number_set(text: &str, limit: u32) -> Result<Vec<u64>, String> {
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u32>().ok())
            .flatten()
            .filter(|number| *number < limit)
            .ok_or_else(|| format!("{text:?} is no number below {limit}"))
    };
    let mut words: Vec<u64> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("invalid range: {part}"));
        }
        for number in first..=last {
            let (word, bit) = ((number / 64) as usize, number % 64);
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            if let Some(word) = words.get_mut(word) {
                *word |= 1 << bit;
            }
        }
    }
    if words.is_empty() { Err(format!("no members found in set {text:?}")) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::number_set;

    #[test]
    fn sets_of_numbers() {
        for (text, want) in [
            ("0", vec![1]),
            ("0-3,5", vec![0x2f]),
            (" 1 ,, 2", vec![6]),
            ("63,64", vec![1 << 63, 1]),
            ("65535", [vec![0; 1023], vec![1 << 63]].concat()),
            ("0-65535", vec![u64::MAX; 1024]),
        ] {
            assert_eq!(number_set(text, 1 << 16), Ok(want), "{text}");
        }
        for text in ["", ",", "a", "-", "1-", "-1", "3-1", "65536", "0-9876543210", "+1", "1-2-3", "0x1", "\u{0}"] {
            assert!(number_set(text, 1 << 16).is_err(), "{text}");
        }
    }
}
