//! Loads the BPF object. Its programs use the pinned maps. A map that is not pinned yet is created and pinned.

use aya::maps::{Array, Map, MapData};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use netpol_common::EVENT_KEY_WORDS;

use super::attach::find_program;
use super::maps::pinned_capacity;
use super::names::{Capacities, MapName};
use super::pins::{Pins, make_dir, pin_error, unpin};
use super::program::Program;
use super::{FlowTotalsMode, KernelError, KernelOptions, Raw, resize};
use netpol_policy::text::error_chain;

/// Number of lines at the end of the verifier's log that are shown.
const LOG_LINES: usize = 30;

/// Options that the programs get when they are loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behavior {
    /// Whether the programs enforce nothing.
    observe: bool,
    /// Whether the programs count the packets and bytes of flows.
    count_traffic: bool,
}

impl Behavior {
    pub(super) fn of(options: &KernelOptions) -> Self {
        Self { observe: options.observe, count_traffic: options.flow_totals != FlowTotalsMode::Off }
    }
}

/// Loads and pins the programs. If `wanted` has another size for a pinned map, this map is resized. If that fails, for
/// example because the entries do not fit, all maps keep their sizes. Returns the programs, and the pins and capacities
/// of their maps. After the programs were attached, call [`take_over`](super::resize::take_over): it replaces the pins
/// of resized maps.
pub(super) fn load(
    object: &[u8],
    pins: Pins,
    wanted: &Capacities,
    behavior: Behavior,
) -> Result<(Ebpf, Pins, Capacities), KernelError> {
    pins.make_dirs()?;
    resize::remove_unfinished(&pins)?;
    let (changed, current) = compare_capacities(&pins, wanted);
    if !changed.is_empty() {
        match load_resized(object, &pins, &changed, wanted, behavior) {
            Ok(loaded) => return pin_programs(loaded),
            Err(error) => {
                let maps = resize::joined_names(&changed);
                tracing::error!(%error, maps, "cannot resize maps in use; all maps keep their old sizes");
                resize::remove_unfinished(&pins)?;
            }
        }
    }
    let ebpf = load_programs(object, &pins, &current, behavior)?;
    pin_programs((ebpf, pins, current))
}

/// The loaded programs, the pins of their maps, and the capacities of their maps.
type Loaded = (Ebpf, Pins, Capacities);

/// Loads the programs, with new maps in place of the maps that change their size, and copies the entries.
fn load_resized(
    object: &[u8],
    old: &Pins,
    changed: &[MapName],
    wanted: &Capacities,
    behavior: Behavior,
) -> Result<Loaded, KernelError> {
    make_dir(&old.resize_dir())?;
    let new = Pins { resized: changed.iter().copied().collect(), ..old.clone() };
    let ebpf = load_programs(object, &new, wanted, behavior)?;
    resize::copy(old, &new, wanted)?;
    Ok((ebpf, new, *wanted))
}

fn load_programs(object: &[u8], pins: &Pins, capacities: &Capacities, behavior: Behavior) -> Result<Ebpf, KernelError> {
    let mut ebpf = loader(pins, capacities, kernel_hz(), behavior).load(object).map_err(|error| load_error(&error))?;
    for program in Program::ALL {
        find_program(&mut ebpf, program).map_err(KernelError::Object)?;
    }
    load_in_parallel(&mut ebpf)?;
    Ok(ebpf)
}

/// Loads the programs in parallel. The verifier takes most of the agent's start time, and uses one CPU per program.
fn load_in_parallel(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let names = Program::ALL.map(Program::name);
    std::thread::scope(|scope| {
        let programs = ebpf.programs_mut().filter(|(name, _)| names.contains(name));
        let loads: Vec<_> = programs
            .map(|(_, program)| {
                scope.spawn(|| {
                    let program: &mut SchedClassifier =
                        program.try_into().map_err(|error: ProgramError| load_error(&error))?;
                    program.load().map_err(|error| load_error(&error))
                })
            })
            .collect();
        let died = |_| Err(KernelError::Load("the thread that loads a program died".to_owned()));
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(died))
    })
}

fn pin_programs((mut ebpf, pins, capacities): Loaded) -> Result<Loaded, KernelError> {
    for program in Program::ALL {
        let pin = pins.programs().join(program.name());
        unpin(&pin)?;
        let program = find_program(&mut ebpf, program).map_err(KernelError::Object)?;
        program.pin(&pin).map_err(|error| pin_error("pin the program at", &pin, &error_chain(&error)))?;
    }
    Ok((ebpf, pins, capacities))
}

fn loader<'a>(pins: &Pins, capacities: &Capacities, hz: u32, behavior: Behavior) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    // The programs read no kernel structures, so they do not need the kernel's BTF. Parsing it would take most of the
    // start time.
    loader.btf(None);
    for &map in MapName::ALL {
        loader.map_max_entries(map.name(), capacities.entries(map));
        loader.map_pin_path(map.name(), pins.map(map));
    }
    // The three masks: the sizes of these maps are powers of two, so `size - 1` is a mask for indices.
    for (global, value) in [
        ("ENDPOINT_MASK", capacities.endpoints - 1),
        ("DENIAL_MASK", capacities.denials - 1),
        ("ALLOWED_FLOW_MASK", capacities.allowed_flows - 1),
        ("OBSERVE", u32::from(behavior.observe)),
        ("COUNT_TRAFFIC", u32::from(behavior.count_traffic)),
        ("HZ", hz),
    ] {
        loader.override_global(global, Box::leak(Box::new(value)) as &u32, true);
    }
    loader.override_global("EVENT_KEY", Box::leak(Box::new(random_key())) as &[u32; EVENT_KEY_WORDS], true);
    loader
}

/// Returns a random key for the hash that determines the index of a flow in `DENIALS` and `ALLOWED_FLOWS`. If a pod
/// could guess the key, it could create flows with the index of another pod's flow, and so suppress events of that
/// flow. Each agent can use a new key, because the entries of an earlier agent in these maps expire within a second.
fn random_key() -> [u32; EVENT_KEY_WORDS] {
    let mut key = [0; EVENT_KEY_WORDS];
    // SAFETY: the buffer is `key`'s own. Reads of up to 256 bytes are complete and not interrupted: getrandom(2).
    let read = unsafe { libc::getrandom(key.as_mut_ptr().cast(), size_of_val(&key), 0) };
    if usize::try_from(read) != Ok(size_of_val(&key)) {
        tracing::warn!(
            error = %std::io::Error::last_os_error(),
            "getrandom failed; a pod may be able to suppress events of its packets"
        );
    }
    key
}

fn load_error(error: &(dyn std::error::Error + 'static)) -> KernelError {
    // The verifier's log ends with the error.
    let text = error_chain(error);
    let lines: Vec<&str> = text.lines().collect();
    KernelError::Load(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}

/// Returns the pinned maps that do not have the wanted sizes, and the current capacities of all maps. For a map that is
/// not pinned, the current capacity is the wanted one.
fn compare_capacities(pins: &Pins, wanted: &Capacities) -> (Vec<MapName>, Capacities) {
    let mut capacities = *wanted;
    let mut changed = Vec::new();
    for &map in MapName::ALL {
        let Some(pinned) = pinned_capacity(pins, map) else { continue };
        capacities.set(map, pinned);
        if pinned != wanted.of(map) {
            changed.push(map);
        }
    }
    // The index of an endpoint depends on the sizes of both maps, so they are resized together.
    if changed.contains(&MapName::Endpoints) != changed.contains(&MapName::EndpointsOverflow) {
        changed.retain(|map| !matches!(map, MapName::Endpoints | MapName::EndpointsOverflow));
        changed.extend([MapName::Endpoints, MapName::EndpointsOverflow]);
    }
    (changed, capacities)
}

/// Returns the kernel's jiffies per second (`CONFIG_HZ`), from the resolution of its coarse clocks. Source:
/// `posix_get_coarse_res`, `kernel/time/posix-timers.c`.
pub(super) fn kernel_hz() -> u32 {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `tick` is a local variable; the clock exists since Linux 2.6.32.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    match u32::try_from(tick.tv_nsec) {
        Ok(nanoseconds @ 1..) if result == 0 => (1_000_000_000 + nanoseconds / 2) / nanoseconds,
        _ => {
            tracing::warn!("cannot read the resolution of the kernel's clock; flow timeouts assume 250 Hz");
            250
        }
    }
}

/// Opens or creates the map `META`, which only the agent uses. Element 0: the highest version of any endpoint.
pub(super) fn open_meta(pins: &Pins) -> Result<Array<MapData, Raw<u32>>, KernelError> {
    let path = pins.root.join("META");
    let failed = |verb, error: &(dyn std::error::Error + 'static)| pin_error(verb, &path, &error_chain(error));
    if !path.exists() {
        let map = Array::<MapData, Raw<u32>>::create(1, 0).map_err(|error| failed("create the map", &error))?;
        map.pin(&path).map_err(|error| failed("pin the map at", &error))?;
    }
    let map = MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .and_then(Array::try_from)
        .map_err(|error| failed("open the map", &error))?;
    Ok(map)
}
