//! A compute pipeline over storage buffers, from a shader in WGSL. Of the example and of the tests, not of the library.

use std::error::Error;

use ash::vk;
use naga::back::spv;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// `output[i] = 3 * input[i % inputs] + weights[i % weights]`
pub const MULTIPLY_ADD: &str = "
    @group(0) @binding(0) var<storage, read> inputs: array<u32>;
    @group(0) @binding(1) var<storage, read> weights: array<u32>;
    @group(0) @binding(2) var<storage, read_write> outputs: array<u32>;

    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        let i = id.x;
        if i < arrayLength(&outputs) {
            outputs[i] = 3u * inputs[i % arrayLength(&inputs)] + weights[i % arrayLength(&weights)];
        }
    }";

/// Invocations in a group of its shaders.
pub const GROUP: u64 = 64;

/// A pipeline, and descriptor sets for it.
pub struct Pipeline {
    pub pipeline: vk::Pipeline,
    pub layout: vk::PipelineLayout,
    sets: vk::DescriptorSetLayout,
    pool: vk::DescriptorPool,
    module: vk::ShaderModule,
}

impl Pipeline {
    /// A pipeline of the function `main` of a shader with so many storage buffers, from binding 0 on, and room for
    /// `most` descriptor sets.
    pub fn new(
        device: &ash::Device,
        shader: &str,
        buffers: u32,
        most: u32,
    ) -> Result<Pipeline, Box<dyn Error>> {
        let code = compile(shader)?;
        let kind = vk::DescriptorType::STORAGE_BUFFER;
        let binding = |at| vk::DescriptorSetLayoutBinding {
            binding: at,
            descriptor_type: kind,
            descriptor_count: 1,
            stage_flags: vk::ShaderStageFlags::COMPUTE,
            ..Default::default()
        };
        let bindings: Vec<_> = (0..buffers).map(binding).collect();
        let sizes = [vk::DescriptorPoolSize { ty: kind, descriptor_count: most * buffers }];
        // SAFETY: the device is alive, and all infos are complete and live during their call.
        unsafe {
            let module =
                device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&code), None)?;
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = device.create_descriptor_set_layout(&info, None)?;
            let layouts = [sets];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts);
            let layout = device.create_pipeline_layout(&info, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout);
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            let pipeline = made.map_err(|(_, error)| error)?[0];
            let flags = vk::DescriptorPoolCreateFlags::FREE_DESCRIPTOR_SET;
            let info = vk::DescriptorPoolCreateInfo::default().flags(flags).max_sets(most).pool_sizes(&sizes);
            let pool = device.create_descriptor_pool(&info, None)?;
            Ok(Pipeline { pipeline, layout, sets, pool, module })
        }
    }

    /// A descriptor set of these buffers: each with its offset and length, bytes.
    pub fn bind(
        &self,
        device: &ash::Device,
        buffers: &[(vk::Buffer, u64, u64)],
    ) -> Result<vk::DescriptorSet, vk::Result> {
        let layouts = [self.sets];
        let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(self.pool).set_layouts(&layouts);
        // SAFETY: pool and layout are alive; nobody else has the set, and no work uses it yet.
        unsafe {
            let set = device.allocate_descriptor_sets(&info)?[0];
            for (at, &(buffer, offset, range)) in (0..).zip(buffers) {
                let info = [vk::DescriptorBufferInfo { buffer, offset, range }];
                let write = vk::WriteDescriptorSet::default()
                    .dst_set(set)
                    .dst_binding(at)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .buffer_info(&info);
                device.update_descriptor_sets(&[write], &[]);
            }
            Ok(set)
        }
    }

    /// Records a dispatch over so many words.
    ///
    /// # Safety
    /// `commands` is being recorded, and everything the set names is alive when they run.
    pub unsafe fn dispatch(
        &self,
        device: &ash::Device,
        commands: vk::CommandBuffer,
        set: vk::DescriptorSet,
        words: u64,
    ) {
        let compute = vk::PipelineBindPoint::COMPUTE;
        // SAFETY: as said; pipeline, layout and set belong together.
        unsafe {
            device.cmd_bind_pipeline(commands, compute, self.pipeline);
            device.cmd_bind_descriptor_sets(commands, compute, self.layout, 0, &[set], &[]);
            device.cmd_dispatch(commands, words.div_ceil(GROUP) as u32, 1, 1);
        }
    }

    /// Destroys it.
    ///
    /// # Safety
    /// Nothing that uses it is unfinished.
    pub unsafe fn destroy(self, device: &ash::Device) {
        // SAFETY: as said.
        unsafe {
            device.destroy_descriptor_pool(self.pool, None);
            device.destroy_pipeline(self.pipeline, None);
            device.destroy_pipeline_layout(self.layout, None);
            device.destroy_descriptor_set_layout(self.sets, None);
            device.destroy_shader_module(self.module, None);
        }
    }
}

/// SPIR-V of a shader in WGSL.
fn compile(shader: &str) -> Result<Vec<u32>, Box<dyn Error>> {
    let module = naga::front::wgsl::parse_str(shader)?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module)?;
    Ok(spv::write_vec(&module, &info, &spv::Options::default(), None)?)
}
