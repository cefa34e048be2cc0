//! A program that copies through blocks of tiled memory, one of them stitched of what others left, and checks the result.
//!
//! ```text
//! cargo run -p tilework-d3d12 --example copies
//! ```

#[cfg(not(windows))]
fn main() {
    eprintln!("{}", tilework_d3d12::D3d12Error::NotWindows { index: 0 });
    std::process::exit(1);
}

#[cfg(windows)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    program::run()
}

#[cfg(windows)]
mod program {
    use std::{error::Error, ptr, slice};

    use tilework::manager::{Block, Kind, Options, Stream, build};
    use tilework_d3d12::bindings::Win32::Graphics::Direct3D12::*;
    use tilework_d3d12::bindings::Win32::Graphics::Dxgi::Common::DXGI_SAMPLE_DESC;
    use tilework_d3d12::bindings::core::{Error as Failure, Interface, Result as Answer};
    use tilework_d3d12::{D3d12, Slice, View, aliasing_barrier};

    const MIB: u64 = 1 << 20;

    pub fn run() -> Result<(), Box<dyn Error>> {
        let device = D3d12::open(0)?;
        let view = device.view();
        println!("{}: {}", view.choice().backing, view.choice().reason);
        let options = Options { heap_bytes: 4 * MIB, ..Options::default() };
        let mut manager = build(Kind::Tiled, Box::new(device), &options)?.manager;

        // Of these every other goes: 6 MiB are free then, and no 5 of them side by side.
        let mut small = Vec::new();
        for mib in [3, 2, 3, 2] {
            small.push(manager.alloc(mib * MIB, Stream(0))?);
        }
        manager.free(small[0].id)?;
        manager.free(small[2].id)?;
        let held = manager.usage().held;
        let large = manager.alloc(5 * MIB, Stream(0))?;
        assert!(manager.kind() != Kind::Tiled || manager.usage().held == held, "what was free suffices");

        let words: Vec<u32> =
            (0..large.bytes as u32 / 4).map(|word| word.wrapping_mul(2_654_435_761)).collect();
        let upload = host_buffer(view.device(), D3D12_HEAP_TYPE_UPLOAD, large.bytes)?;
        let readback = host_buffer(view.device(), D3D12_HEAP_TYPE_READBACK, large.bytes)?;
        // SAFETY: the buffer has as many words, and nothing uses it yet.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr(), host_address(&upload)?, words.len()) };

        // Into the large block; then piece by piece through a small one to the host.
        let mut program = Program { view: view.clone(), lists: Vec::new() };
        program.copy(&program.place(&large, 0)?, &(upload.clone(), 0), large.bytes)?;
        let piece = &small[1];
        for offset in (0..large.bytes).step_by(piece.bytes as usize) {
            let bytes = piece.bytes.min(large.bytes - offset);
            program.copy(&program.place(piece, 0)?, &program.place(&large, offset)?, bytes)?;
            program.copy(&(readback.clone(), offset), &program.place(piece, 0)?, bytes)?;
        }
        // Freed while it is queued, and given back: that waits for the queue, and the host for neither.
        manager.free(large.id)?;
        manager.trim()?;

        let (fence, value) = view.ready()?;
        // SAFETY: the fence is alive; without an event this returns when it has the value. Then nothing is unfinished that
        // writes the buffer, which has as many words.
        let found = unsafe {
            fence.SetEventOnCompletion(value, Default::default())?;
            assert!(fence.GetCompletedValue() >= value);
            slice::from_raw_parts(host_address(&readback)?, words.len())
        };
        assert_eq!(found.iter().zip(&words).position(|(found, word)| found != word), None);
        println!("{} words went through {} memory and back, all right", words.len(), manager.kind());
        Ok(())
    }

    /// A buffer and an offset in it, bytes.
    type Place = (ID3D12Resource, u64);

    struct Program {
        view: View,
        /// Until all has been executed.
        lists: Vec<(ID3D12GraphicsCommandList, ID3D12CommandAllocator)>,
    }

    impl Program {
        fn place(&self, block: &Block, offset: u64) -> Result<Place, &'static str> {
            let Slice { resource, offset: begin, .. } =
                self.view.find(block.address).ok_or("an allocated block has a place")?;
            Ok((resource, begin + offset))
        }

        /// Executes one copy between two buffers, in a list of its own: there a buffer begins in the state COMMON, which the
        /// copy promotes to what it needs.
        fn copy(&mut self, to: &Place, from: &Place, bytes: u64) -> Answer<()> {
            let (device, queue) = (self.view.device(), self.view.queue());
            // SAFETY: interfaces that are held are alive, lists and allocators until the end; the bytes lie in both buffers.
            unsafe {
                let kind = queue.GetDesc().Type;
                let allocator: ID3D12CommandAllocator = device.CreateCommandAllocator(kind)?;
                let list: ID3D12GraphicsCommandList = device.CreateCommandList(0, kind, &allocator, None)?;
                // Memory that one block had may be another's now, in another buffer.
                list.ResourceBarrier(&[aliasing_barrier()]);
                list.CopyBufferRegion(&to.0, to.1, &from.0, from.1, bytes);
                list.Close()?;
                queue.ExecuteCommandLists(&[Some(list.cast()?)]);
                self.lists.push((list, allocator));
            }
            Ok(())
        }
    }

    /// A buffer that the host reaches.
    fn host_buffer(device: &ID3D12Device, heap: D3D12_HEAP_TYPE, bytes: u64) -> Answer<ID3D12Resource> {
        let state = match heap {
            D3D12_HEAP_TYPE_READBACK => D3D12_RESOURCE_STATE_COPY_DEST,
            _ => D3D12_RESOURCE_STATE_GENERIC_READ,
        };
        let heap = D3D12_HEAP_PROPERTIES { Type: heap, ..Default::default() };
        let desc = D3D12_RESOURCE_DESC {
            Dimension: D3D12_RESOURCE_DIMENSION_BUFFER,
            Width: bytes,
            Height: 1,
            DepthOrArraySize: 1,
            MipLevels: 1,
            SampleDesc: DXGI_SAMPLE_DESC { Count: 1, Quality: 0 },
            Layout: D3D12_TEXTURE_LAYOUT_ROW_MAJOR,
            ..Default::default()
        };
        let mut made = None;
        // SAFETY: descriptions are valid, and there is a place for an interface.
        unsafe {
            device.CreateCommittedResource(&heap, D3D12_HEAP_FLAG_NONE, &desc, state, None, &mut made)
        }?;
        made.ok_or_else(Failure::empty)
    }

    /// Where the host sees it.
    fn host_address(buffer: &ID3D12Resource) -> Answer<*mut u32> {
        let mut address = ptr::null_mut();
        // SAFETY: in memory that the host reaches, where it may stay mapped.
        unsafe { buffer.Map(0, None, Some(&mut address)) }?;
        Ok(address.cast())
    }
}
