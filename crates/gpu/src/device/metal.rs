//! Apple GPUs.
//!
//! * Launches go to one concurrent encoder; a barrier stands only between launches that depend on each other ([`Hazards`]).
//! * Buffers are shared with the CPU, untracked, and made resident once by a residency set where the system has them (macOS 15).
//! * Weights in a file mapping are used where they lie ([`Device::borrow`]).
//! * Compiled pipelines are kept in a binary archive on disk, keyed by source, GPU and system.

use super::{Compiled, Device, Function, Handle, Hazards, Info, Launch, cache};
use crate::select::Chip;
use crate::source::{Entry, Target};
use crate::{Error, Result};
use marlin_checkpoint::Bytes;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{NSObjectProtocol, ProtocolObject};
use objc2::sel;
use objc2_foundation::{NSArray, NSError, NSProcessInfo, NSString, NSURL};
use objc2_metal::*;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Gpu = Retained<ProtocolObject<dyn MTLDevice>>;
type Memory = Retained<ProtocolObject<dyn MTLBuffer>>;
type Commands = Retained<ProtocolObject<dyn MTLCommandBuffer>>;
type Encoder = Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>;
type Pipeline = Retained<ProtocolObject<dyn MTLComputePipelineState>>;
type Residency = Retained<ProtocolObject<dyn MTLResidencySet>>;

/// Launches after which a command buffer is handed over, so that the GPU begins while the next is encoded.
const LAUNCHES: usize = 64;

/// The page of Apple's processors.
const PAGE: usize = 1 << 14;

/// A buffer, and what it lies in if that is not its own.
struct Held {
    buffer: Memory,
    _bytes: Option<Bytes>,
}

/// A command buffer under way.
struct Open {
    commands: Commands,
    encoder: Encoder,
    hazards: Hazards,
    launches: usize,
}

/// Bytes to be read once a command buffer is done, if there was one.
struct Fetch {
    commands: Option<Commands>,
    buffer: Memory,
    offset: usize,
    bytes: usize,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// Handed over and not yet known to be done, oldest first.
    pending: Vec<Commands>,
    buffers: HashMap<u64, Held>,
    pipelines: Vec<Pipeline>,
    fetches: HashMap<u64, Fetch>,
    next: u64,
}

/// The GPU of this Mac.
pub struct Metal {
    info: Info,
    gpu: Gpu,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    residency: Option<Residency>,
    state: Mutex<State>,
}

// SAFETY: Metal's devices, queues, buffers, pipelines and residency sets may be used from any thread; command buffers and
// encoders are used under the lock of `state` only, by one thread at a time.
unsafe impl Send for Metal {}
// SAFETY: as above.
unsafe impl Sync for Metal {}

fn error(what: &str, error: &NSError) -> Error {
    Error::Device(format!("Metal: {what}: {}", error.localizedDescription()))
}

fn none(what: &str) -> Error {
    Error::Device(format!("Metal: {what} was refused"))
}

impl Metal {
    /// The default GPU, or why it cannot be used, in one line.
    pub fn open() -> Result<Self> {
        autoreleasepool(|_| {
            let gpu = MTLCreateSystemDefaultDevice()
                .ok_or_else(|| Error::Absent("there is no GPU that Metal knows".into()))?;
            // Apple7 is the M1: simdgroup matrices and 32 lanes.
            if !gpu.supportsFamily(MTLGPUFamily::Apple7) {
                return Err(Error::Absent(format!("{} is older than the M1, whose GPU is needed", gpu.name())));
            }
            let families = [(MTLGPUFamily::Apple9, "apple9"), (MTLGPUFamily::Apple8, "apple8")];
            let family =
                families.into_iter().find(|(family, _)| gpu.supportsFamily(*family)).map_or("apple7", |(_, name)| name);
            let queue = gpu.newCommandQueue().ok_or_else(|| none("a command queue"))?;
            let residency = if gpu.respondsToSelector(sel!(newResidencySetWithDescriptor:error:)) {
                let set = gpu
                    .newResidencySetWithDescriptor_error(&MTLResidencySetDescriptor::new())
                    .map_err(|e| error("a residency set", &e))?;
                queue.addResidencySet(&set);
                Some(set)
            } else {
                None
            };
            let mut info = Info {
                name: gpu.name().to_string(),
                architecture: family.into(),
                driver: NSProcessInfo::processInfo().operatingSystemVersionString().to_string(),
                memory: gpu.recommendedMaxWorkingSetSize() as usize,
                longest_buffer: gpu.maxBufferLength(),
                cores: 0,
            };
            // Metal does not tell.
            info.cores = Chip::of(&info).cores;
            Ok(Self { info, gpu, queue, residency, state: Mutex::default() })
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a buffer and makes it resident.
    fn hold(&self, buffer: Memory, bytes: Option<Bytes>) -> Handle {
        if let Some(set) = &self.residency {
            set.addAllocation(ProtocolObject::from_ref(&*buffer));
            set.commit();
        }
        let mut state = self.lock();
        state.next += 1;
        let handle = state.next;
        state.buffers.insert(handle, Held { buffer, _bytes: bytes });
        Handle(handle)
    }

    fn begin<'a>(&self, state: &'a mut State) -> Result<&'a mut Open> {
        if state.open.is_none() {
            let commands = self.queue.commandBuffer().ok_or_else(|| none("a command buffer"))?;
            let encoder = commands
                .computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent)
                .ok_or_else(|| none("a compute encoder"))?;
            state.open = Some(Open { commands, encoder, hazards: Hazards::default(), launches: 0 });
        }
        state.open.as_mut().ok_or_else(|| none("a command buffer"))
    }

    /// Hands the open command buffer over.
    fn commit(state: &mut State) {
        if let Some(open) = state.open.take() {
            open.encoder.endEncoding();
            open.commands.commit();
            state.pending.push(open.commands);
        }
    }

    /// Waits for everything handed over, and says what went wrong.
    fn finish(state: &mut State) -> Result<()> {
        Self::commit(state);
        let mut result = Ok(());
        for commands in state.pending.drain(..) {
            commands.waitUntilCompleted();
            if let (Ok(()), Some(e)) = (&result, commands.error()) {
                result = Err(error("a command buffer", &e));
            }
        }
        result
    }

    fn library(&self, text: &str, kernel: &str) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>> {
        let options = MTLCompileOptions::new();
        options.setLanguageVersion(MTLLanguageVersion::Version3_1);
        // Decoding relies on exact sums and on the subnormals of half precision.
        if options.respondsToSelector(sel!(setMathMode:)) {
            options.setMathMode(MTLMathMode::Safe);
        } else {
            #[allow(deprecated)] // what systems before macOS 15 have
            options.setFastMathEnabled(false);
        }
        let source = NSString::from_str(text);
        let refused =
            |e: Retained<NSError>| Error::Compile { kernel: kernel.into(), log: e.localizedDescription().to_string() };
        self.gpu.newLibraryWithSource_options_error(&source, Some(&options)).map_err(refused)
    }
}

impl Drop for Metal {
    fn drop(&mut self) {
        // What fails here has nobody to tell.
        _ = self.wait();
    }
}

impl Device for Metal {
    fn info(&self) -> &Info {
        &self.info
    }

    fn target(&self) -> Target {
        Target::Metal
    }

    fn allocate(&self, bytes: usize) -> Result<Handle> {
        autoreleasepool(|_| {
            let options = MTLResourceOptions::StorageModeShared | MTLResourceOptions::HazardTrackingModeUntracked;
            let buffer = self.gpu.newBufferWithLength_options(bytes, options);
            Ok(self.hold(buffer.ok_or(Error::OutOfMemory { bytes, active: 0, cap: 0 })?, None))
        })
    }

    fn free(&self, handle: Handle) {
        autoreleasepool(|_| {
            let held = self.lock().buffers.remove(&handle.0);
            // Command buffers keep what they use until they are done.
            if let (Some(held), Some(set)) = (held, &self.residency) {
                set.removeAllocation(ProtocolObject::from_ref(&*held.buffer));
                set.commit();
            }
        });
    }

    fn borrow(&self, bytes: &Bytes) -> Result<Option<(Handle, usize)>> {
        let begin = bytes.as_ptr() as usize;
        let (first, last) = (begin / PAGE * PAGE, (begin + bytes.len()).next_multiple_of(PAGE));
        // Vector loads need 16 bytes; only mappings lie in pages of their own.
        if !bytes.is_mapped()
            || bytes.is_empty()
            || !begin.is_multiple_of(16)
            || last - first > self.info.longest_buffer
        {
            return Ok(None);
        }
        autoreleasepool(|_| {
            let Some(pointer) = NonNull::new(first as *mut c_void) else { return Ok(None) };
            let options = MTLResourceOptions::StorageModeShared | MTLResourceOptions::HazardTrackingModeUntracked;
            // SAFETY: whole pages of a file mapping, which begins and ends with pages; the clone of `bytes` that is held keeps it
            // until the buffer is gone. Kernels only read it, as bindings of borrowed memory are.
            let buffer = unsafe {
                self.gpu.newBufferWithBytesNoCopy_length_options_deallocator(pointer, last - first, options, None)
            };
            Ok(buffer.map(|buffer| (self.hold(buffer, Some(bytes.clone())), begin - first)))
        })
    }

    fn upload(&self, to: Handle, offset: usize, data: &[u8]) -> Result<()> {
        autoreleasepool(|_| {
            let mut state = self.lock();
            let target = state.buffers.get(&to.0).map(|h| h.buffer.clone()).ok_or_else(|| none("a buffer"))?;
            if offset + data.len() > target.length() {
                return Err(none("an upload beyond the end of a buffer"));
            }
            state.pending.retain(|c| c.status() != MTLCommandBufferStatus::Completed || c.error().is_some());
            if state.open.is_none() && state.pending.is_empty() {
                // SAFETY: nothing runs; the buffer is shared memory of ours with room for the bytes, as checked.
                unsafe {
                    let contents = target.contents().as_ptr().cast::<u8>().add(offset);
                    std::ptr::copy_nonoverlapping(data.as_ptr(), contents, data.len());
                }
                return Ok(());
            }
            // In order with what is under way: through a buffer of its own.
            let pointer = NonNull::from(data).cast();
            // SAFETY: the bytes are copied into the new buffer before this returns.
            let staged = unsafe {
                self.gpu.newBufferWithBytes_length_options(pointer, data.len(), MTLResourceOptions::StorageModeShared)
            };
            let staged = staged.ok_or_else(|| none("a buffer"))?;
            Self::commit(&mut state);
            let commands = self.queue.commandBuffer().ok_or_else(|| none("a command buffer"))?;
            let encoder = commands.blitCommandEncoder().ok_or_else(|| none("a blit encoder"))?;
            // SAFETY: both ranges lie within their buffers.
            unsafe {
                encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(
                    &staged,
                    0,
                    &target,
                    offset,
                    data.len(),
                );
            }
            encoder.endEncoding();
            commands.commit();
            state.pending.push(commands);
            Ok(())
        })
    }

    fn download(&self, from: Handle, offset: usize, out: &mut [u8]) -> Result<()> {
        autoreleasepool(|_| {
            let mut state = self.lock();
            Self::finish(&mut state)?;
            let buffer = &state.buffers.get(&from.0).ok_or_else(|| none("a buffer"))?.buffer;
            if offset + out.len() > buffer.length() {
                return Err(none("a read beyond the end of a buffer"));
            }
            // SAFETY: nothing runs; the range lies within the shared memory of the buffer.
            unsafe {
                let contents = buffer.contents().as_ptr().cast::<u8>().add(offset);
                std::ptr::copy_nonoverlapping(contents, out.as_mut_ptr(), out.len());
            }
            Ok(())
        })
    }

    fn fetch(&self, from: Handle, offset: usize, bytes: usize) -> Result<Option<u64>> {
        autoreleasepool(|_| {
            let mut state = self.lock();
            let buffer = state.buffers.get(&from.0).map(|h| h.buffer.clone()).ok_or_else(|| none("a buffer"))?;
            if offset + bytes > buffer.length() {
                return Err(none("a read beyond the end of a buffer"));
            }
            Self::commit(&mut state);
            // Command buffers of a queue end in order.
            let commands = state.pending.last().cloned();
            state.next += 1;
            let number = state.next;
            state.fetches.insert(number, Fetch { commands, buffer, offset, bytes });
            Ok(Some(number))
        })
    }

    fn fetched(&self, number: u64, out: &mut [u8]) -> Result<()> {
        autoreleasepool(|_| {
            let state = self.lock();
            let fetch = state.fetches.get(&number).filter(|f| f.bytes == out.len());
            let fetch = fetch.ok_or_else(|| none("what nobody fetched"))?;
            if let Some(commands) = &fetch.commands {
                commands.waitUntilCompleted();
                if let Some(e) = commands.error() {
                    return Err(error("a command buffer", &e));
                }
            }
            // SAFETY: what wrote the bytes is done, and nothing writes them until they are forgotten; the range lies within the
            // shared memory of the buffer, as was checked.
            unsafe {
                let contents = fetch.buffer.contents().as_ptr().cast::<u8>().add(fetch.offset);
                std::ptr::copy_nonoverlapping(contents, out.as_mut_ptr(), out.len());
            }
            Ok(())
        })
    }

    fn forget_fetch(&self, number: u64) {
        autoreleasepool(|_| drop(self.lock().fetches.remove(&number)));
    }

    fn compile(&self, text: &str, entries: &[Entry]) -> Result<Compiled> {
        autoreleasepool(|_| {
            let first = entries.first().map_or("", |e| e.name.as_str());
            let library = self.library(text, first)?;
            let Info { name, architecture, driver, .. } = &self.info;
            let path = cache::path(&[text, name, architecture, driver], "metalarchive");
            let url = path.as_ref().and_then(|p| p.to_str()).map(|p| NSURL::fileURLWithPath(&NSString::from_str(p)));
            let kept = path.as_ref().is_some_and(|p| p.exists());
            // An archive that cannot be opened is made anew.
            let open = |url: Option<&NSURL>| {
                let descriptor = MTLBinaryArchiveDescriptor::new();
                descriptor.setUrl(url);
                self.gpu.newBinaryArchiveWithDescriptor_error(&descriptor).ok()
            };
            let known = if kept { open(url.as_deref()) } else { None };
            let fresh = known.is_none();
            let archive = known.or_else(|| open(None));
            let mut pipelines = Vec::with_capacity(entries.len());
            for e in entries {
                let function = library.newFunctionWithName(&NSString::from_str(&e.name));
                let descriptor = MTLComputePipelineDescriptor::new();
                let missing = || Error::NotFound { kernel: e.name.clone() };
                descriptor.setComputeFunction(Some(&*function.ok_or_else(missing)?));
                if let Some(archive) = &archive {
                    descriptor.setBinaryArchives(Some(&NSArray::from_retained_slice(std::slice::from_ref(archive))));
                    if fresh {
                        // What is not archived is compiled again the next time.
                        _ = archive.addComputePipelineFunctionsWithDescriptor_error(&descriptor);
                    }
                }
                let refused = |why: String| Error::Compile { kernel: e.name.clone(), log: why };
                let pipeline = self
                    .gpu
                    .newComputePipelineStateWithDescriptor_options_reflection_error(
                        &descriptor,
                        MTLPipelineOption::None,
                        None,
                    )
                    .map_err(|e| refused(e.localizedDescription().to_string()))?;
                if pipeline.threadExecutionWidth() != 32
                    || pipeline.maxTotalThreadsPerThreadgroup() < e.threads as usize
                {
                    let (width, most) = (pipeline.threadExecutionWidth(), pipeline.maxTotalThreadsPerThreadgroup());
                    return Err(refused(format!(
                        "simdgroups of {width}, at most {most} threads; 32 and {} are needed",
                        e.threads
                    )));
                }
                pipelines.push(pipeline);
            }
            if let (true, Some(archive), Some(url)) = (fresh, &archive, &url) {
                // A cache that cannot be written is done without.
                _ = archive.serializeToURL_error(url);
            }
            let mut state = self.lock();
            let from = state.pipelines.len() as u64;
            state.pipelines.extend(pipelines);
            let functions = (0..entries.len() as u64).map(|i| Function(from + i)).collect();
            Ok(Compiled { functions, cached: !fresh })
        })
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        autoreleasepool(|_| {
            let mut state = self.lock();
            let pipeline = state.pipelines.get(launch.function.0 as usize).cloned().ok_or_else(|| none("a kernel"))?;
            let buffer = |state: &State, handle: Handle| state.buffers.get(&handle.0).map(|h| h.buffer.clone());
            let buffers: Option<Vec<Memory>> = launch.bindings.iter().map(|b| buffer(&state, b.handle)).collect();
            let buffers = buffers.ok_or_else(|| none("a buffer"))?;
            let open = self.begin(&mut state)?;
            if open.hazards.next(launch.bindings) {
                open.encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
            }
            open.encoder.setComputePipelineState(&pipeline);
            for (i, (b, buffer)) in launch.bindings.iter().zip(&buffers).enumerate() {
                // SAFETY: offsets lie within the buffers, as slices do; indices are those of the declaration.
                unsafe { open.encoder.setBuffer_offset_atIndex(Some(&**buffer), b.offset, i) };
            }
            if let Some(bytes) = NonNull::new(launch.arguments.as_ptr().cast_mut().cast()) {
                // SAFETY: the bytes are copied before this returns.
                unsafe { open.encoder.setBytes_length_atIndex(bytes, launch.arguments.len(), buffers.len()) };
            }
            let size = |[x, y, z]: [u32; 3]| MTLSize { width: x as usize, height: y as usize, depth: z as usize };
            open.encoder.dispatchThreadgroups_threadsPerThreadgroup(size(launch.groups), size([launch.threads, 1, 1]));
            open.launches += 1;
            if open.launches >= LAUNCHES {
                Self::commit(&mut state);
            }
            Ok(())
        })
    }

    fn begin_capture(&self, file: Option<&std::path::Path>) -> Result<()> {
        autoreleasepool(|_| {
            self.wait()?;
            let file =
                file.ok_or_else(|| Error::Absent("Metal captures into a file: --capture FILE.gputrace".into()))?;
            // SAFETY: the one manager of the process, as Metal gives it.
            let manager = unsafe { MTLCaptureManager::sharedCaptureManager() };
            if !manager.supportsDestination(MTLCaptureDestination::GPUTraceDocument) {
                let why = "Metal captures only where MTL_CAPTURE_ENABLED=1 is set before the program starts";
                return Err(Error::Absent(why.into()));
            }
            let path = file.to_str().ok_or_else(|| Error::Absent(format!("{}: is not UTF-8", file.display())))?;
            let url = NSURL::fileURLWithPath(&NSString::from_str(path));
            let descriptor = MTLCaptureDescriptor::new();
            descriptor.set_capture_device(&self.gpu);
            descriptor.setDestination(MTLCaptureDestination::GPUTraceDocument);
            descriptor.setOutputURL(Some(&url));
            manager.startCaptureWithDescriptor_error(&descriptor).map_err(|e| error("a capture", &e))
        })
    }

    fn end_capture(&self) -> Result<()> {
        autoreleasepool(|_| {
            self.wait()?;
            // SAFETY: as above.
            unsafe { MTLCaptureManager::sharedCaptureManager() }.stopCapture();
            Ok(())
        })
    }

    fn submit(&self) -> Result<()> {
        autoreleasepool(|_| Self::commit(&mut self.lock()));
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        autoreleasepool(|_| Self::finish(&mut self.lock()))
    }
}
