//! Loads the object once, into the maps that are pinned already or into new ones.

use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use netpol_common::Direction;

use super::attach::{chain, program, program_name};
use super::maps::pinned_capacity;
use super::names::{Capacities, MapName};
use super::pins::{Pins, pin_error, unpin};
use super::{KernelError, Raw};

/// Frequencies that kernels are built with.
const FREQUENCIES: [u32; 4] = [100, 250, 300, 1000];

/// Lines of a refusal that are shown.
const LOG_LINES: usize = 30;

/// Loads and pins; tells the capacities in force, which are those of the pinned maps where there were any.
pub(super) fn load(object: &[u8], pins: &Pins, wanted: &Capacities) -> Result<(Ebpf, Capacities), KernelError> {
    pins.make()?;
    let capacities = adopt(pins, wanted);
    let mut ebpf = loader(pins, &capacities, frequency(object)).load(object).map_err(|error| refused(&error))?;
    for direction in Direction::BOTH {
        let program = program(&mut ebpf, direction).map_err(KernelError::Object)?;
        program.load().map_err(|error| refused(&error))?;
        let pin = pins.programs().join(program_name(direction));
        unpin(&pin)?;
        program.pin(&pin).map_err(|error| pin_error("pin the program at", &pin, &error))?;
    }
    Ok((ebpf, capacities))
}

fn loader<'a>(pins: &Pins, capacities: &Capacities, hz: u32) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    for &map in MapName::ALL {
        loader.map_max_entries(map.name(), capacities.of(map));
        loader.map_pin_path(map.name(), pins.root.join(map.name()));
    }
    for (global, value) in
        [("ENDPOINT_MASK", capacities.endpoints - 1), ("DENIAL_MASK", capacities.denials - 1), ("HZ", hz)]
    {
        loader.override_global(global, Box::leak(Box::new(value)) as &u32, true);
    }
    loader
}

fn refused(error: &(dyn std::error::Error + 'static)) -> KernelError {
    // The verifier's log ends with what it objects to.
    let text = chain(error);
    let lines: Vec<&str> = text.lines().collect();
    KernelError::Load(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}

/// The sizes of the maps that are pinned, and the wanted ones of those that are not.
fn adopt(pins: &Pins, wanted: &Capacities) -> Capacities {
    let mut capacities = *wanted;
    for &map in MapName::ALL {
        let Some(pinned) = pinned_capacity(&pins.root, map) else { continue };
        if pinned != wanted.of(map) {
            tracing::warn!(%map, pinned, wanted = wanted.of(map),
                "the pinned map keeps its size; to change it, run `netpol-agent uninstall` and start again ({})", map.option());
        }
        capacities.set(map, pinned);
    }
    capacities
}

/// The kernel's jiffies per second, which it does not tell: a program that returns the jiffies is run twice. Where that
/// fails, timeouts are off by the factor that the guess is.
fn frequency(object: &[u8]) -> u32 {
    measure(object).unwrap_or_else(|message| {
        tracing::warn!(message, "cannot measure the kernel's clock; flow timeouts assume 250 Hz");
        250
    })
}

fn measure(object: &[u8]) -> Result<u32, String> {
    let mut loader = EbpfLoader::new();
    for &map in MapName::ALL {
        // Only to run one program: as small as it gets.
        loader.map_max_entries(map.name(), if map == MapName::Events { 4096 } else { 1 });
    }
    let mut ebpf = loader.load(object).map_err(|error| chain(&error))?;
    let clock = ebpf.program_mut("netpol_jiffies").ok_or("the BPF object has no program netpol_jiffies")?;
    let clock: &mut SchedClassifier = clock.try_into().map_err(|_| "netpol_jiffies is no classifier")?;
    clock.load().map_err(|error| chain(&error))?;
    let read = |clock: &SchedClassifier| {
        let mut options = TestRunOptions::new();
        let packet = [0_u8; 64];
        options.data_in = Some(&packet);
        clock.test_run(options).map(|result| result.return_value).map_err(|error| chain(&error))
    };
    let (begun, first) = (Instant::now(), read(clock)?);
    std::thread::sleep(Duration::from_millis(60));
    let (elapsed, last) = (begun.elapsed(), read(clock)?);
    let measured = f64::from(last.wrapping_sub(first)) / elapsed.as_secs_f64();
    let nearest = FREQUENCIES
        .into_iter()
        .min_by(|a, b| (f64::from(*a) - measured).abs().total_cmp(&(f64::from(*b) - measured).abs()));
    Ok(nearest.unwrap_or(250))
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
