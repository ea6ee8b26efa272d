//! Loads the object once, into the maps that are pinned already or into new ones.

use aya::maps::{Array, Map, MapData};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use netpol_common::DENIAL_KEY_WORDS;

use super::attach::program;
use super::maps::pinned_capacity;
use super::names::{Capacities, MapName};
use super::pins::{Pins, make, pin_error, unpin};
use super::program::Program;
use super::{KernelError, Raw, resize};
use crate::chain::chain;

/// Lines of a refusal that are shown.
const LOG_LINES: usize = 30;

/// Loads and pins; tells the capacities in force. Those of maps that are pinned change where `wanted` says so and there is
/// room for what is in them, else they stay; the resized maps are to [`take_over`](super::resize::take_over) once programs
/// use them.
pub(super) fn load(object: &[u8], pins: Pins, wanted: &Capacities) -> Result<(Ebpf, Pins, Capacities), KernelError> {
    pins.make()?;
    resize::discard(&pins)?;
    let (changed, pinned) = compare(&pins, wanted);
    if !changed.is_empty() {
        match resized(object, &pins, &changed, wanted) {
            Ok(loaded) => return pin_programs(loaded),
            Err(error) => {
                let maps = resize::listed(&changed);
                tracing::error!(%error, maps, "cannot change the sizes of maps in use; all keep their old sizes");
                resize::discard(&pins)?;
            }
        }
    }
    let ebpf = load_programs(object, &pins, &pinned)?;
    pin_programs((ebpf, pins, pinned))
}

type Loaded = (Ebpf, Pins, Capacities);

fn resized(object: &[u8], old: &Pins, changed: &[MapName], wanted: &Capacities) -> Result<Loaded, KernelError> {
    make(&old.resize())?;
    let new = Pins { resized: changed.iter().copied().collect(), ..old.clone() };
    let ebpf = load_programs(object, &new, wanted)?;
    resize::copy(old, &new, wanted)?;
    Ok((ebpf, new, *wanted))
}

fn load_programs(object: &[u8], pins: &Pins, capacities: &Capacities) -> Result<Ebpf, KernelError> {
    let mut ebpf = loader(pins, capacities, frequency()).load(object).map_err(|error| refused(&error))?;
    for of in Program::ALL {
        program(&mut ebpf, of).map_err(KernelError::Object)?;
    }
    verify(&mut ebpf)?;
    Ok(ebpf)
}

/// Loads the programs at the same time: the verifier takes most of the agent's start, and one CPU for each.
fn verify(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let wanted = Program::ALL.map(Program::name);
    std::thread::scope(|scope| {
        let programs = ebpf.programs_mut().filter(|(name, _)| wanted.contains(name));
        let loads: Vec<_> = programs
            .map(|(_, program)| {
                scope.spawn(|| {
                    let program: &mut SchedClassifier =
                        program.try_into().map_err(|error: ProgramError| refused(&error))?;
                    program.load().map_err(|error| refused(&error))
                })
            })
            .collect();
        let died = |_| Err(KernelError::Load("the thread that loads a program died".to_owned()));
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(died))
    })
}

fn pin_programs((mut ebpf, pins, capacities): Loaded) -> Result<Loaded, KernelError> {
    for of in Program::ALL {
        let pin = pins.programs().join(of.name());
        unpin(&pin)?;
        let program = program(&mut ebpf, of).map_err(KernelError::Object)?;
        program.pin(&pin).map_err(|error| pin_error("pin the program at", &pin, &chain(&error)))?;
    }
    Ok((ebpf, pins, capacities))
}

fn loader<'a>(pins: &Pins, capacities: &Capacities, hz: u32) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    // The programs read no kernel structure: parsing the kernel's own types would be most of the start.
    loader.btf(None);
    for &map in MapName::ALL {
        loader.map_max_entries(map.name(), capacities.entries(map));
        loader.map_pin_path(map.name(), pins.map(map));
    }
    for (global, value) in
        [("ENDPOINT_MASK", capacities.endpoints - 1), ("DENIAL_MASK", capacities.denials - 1), ("HZ", hz)]
    {
        loader.override_global(global, Box::leak(Box::new(value)) as &u32, true);
    }
    loader.override_global("DENIAL_KEY", Box::leak(Box::new(random())) as &[u32; DENIAL_KEY_WORDS], true);
    loader
}

/// A key that no pod can know or guess. Each agent has its own; what `DENIALS` holds by an earlier one ages out within a second.
fn random() -> [u32; DENIAL_KEY_WORDS] {
    let mut key = [0; DENIAL_KEY_WORDS];
    // SAFETY: the buffer is `key`'s own. Up to 256 bytes come at once, and nothing interrupts it: getrandom(2).
    let read = unsafe { libc::getrandom(key.as_mut_ptr().cast(), size_of_val(&key), 0) };
    if usize::try_from(read) != Ok(size_of_val(&key)) {
        tracing::warn!(
            error = %std::io::Error::last_os_error(),
            "getrandom failed; a pod may be able to hide denied packets from the reports"
        );
    }
    key
}

fn refused(error: &(dyn std::error::Error + 'static)) -> KernelError {
    // The verifier's log ends with what it objects to.
    let text = chain(error);
    let lines: Vec<&str> = text.lines().collect();
    KernelError::Load(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}

/// The pinned maps whose sizes are not the wanted ones, and the sizes there are, with the wanted ones of maps that are not
/// pinned.
fn compare(pins: &Pins, wanted: &Capacities) -> (Vec<MapName>, Capacities) {
    let mut capacities = *wanted;
    let mut changed = Vec::new();
    for &map in MapName::ALL {
        let Some(pinned) = pinned_capacity(pins, map) else { continue };
        capacities.set(map, pinned);
        if pinned != wanted.of(map) {
            changed.push(map);
        }
    }
    // Where an endpoint stands depends on both.
    if changed.contains(&MapName::Endpoints) != changed.contains(&MapName::EndpointsOverflow) {
        changed.retain(|map| !matches!(map, MapName::Endpoints | MapName::EndpointsOverflow));
        changed.extend([MapName::Endpoints, MapName::EndpointsOverflow]);
    }
    (changed, capacities)
}

/// The kernel's jiffies per second (`CONFIG_HZ`): the resolution of its coarse clocks is one of them.
/// Source: `posix_get_coarse_res`, `kernel/time/posix-timers.c`.
pub(super) fn frequency() -> u32 {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `tick` is ours; the clock exists since Linux 2.6.32.
    let answer = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    match u32::try_from(tick.tv_nsec) {
        Ok(nanoseconds @ 1..) if answer == 0 => (1_000_000_000 + nanoseconds / 2) / nanoseconds,
        _ => {
            tracing::warn!("the kernel does not tell its clock's resolution; flow timeouts assume 250 Hz");
            250
        }
    }
}

/// `META`: the agent's own notes, pinned with the rest. Element 0: the highest generation given to any endpoint.
pub(super) fn meta(pins: &Pins) -> Result<Array<MapData, Raw<u32>>, KernelError> {
    let path = pins.root.join("META");
    let failed = |verb, error: &(dyn std::error::Error + 'static)| pin_error(verb, &path, &chain(error));
    if !path.exists() {
        let map = Array::<MapData, Raw<u32>>::create(1, 0).map_err(|error| failed("make the map", &error))?;
        map.pin(&path).map_err(|error| failed("pin the map at", &error))?;
    }
    let map = MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .and_then(Array::try_from)
        .map_err(|error| failed("open the map", &error))?;
    Ok(map)
}
