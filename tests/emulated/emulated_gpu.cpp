// A CUDA device whose memory is the host's and whose kernels are torch's for the CPU: see emulated_gpu.py.
//
// Tensors on it have the device and the dispatch keys of a GPU's. An operator that torch has no kernel of its own for
// there arrives at `compute`, which lets the CPU's kernel work on the same memory.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

using c10::DataPtr;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Storage;
using c10::Stream;

namespace {

const Device DEVICE(DeviceType::CUDA, 0);
std::atomic<int64_t> used{0}, peak{0}, limit{INT64_MAX};
std::atomic<bool> capturing{false}, replaying{false};

void take(size_t bytes) {
  const int64_t now = used + static_cast<int64_t>(bytes);
  TORCH_CHECK_WITH(OutOfMemoryError, replaying || now <= limit, "CUDA out of memory. Tried to allocate ", bytes, " bytes");
  used = now;
  if (now > peak) peak = now;
}

// Memory of the host that counts as the device's until it is freed.
struct Block {
  Storage host;
  size_t bytes;
};

void free_block(void* block) {
  used -= static_cast<Block*>(block)->bytes;
  delete static_cast<Block*>(block);
}

DataPtr held(const Storage& host) {
  take(host.nbytes());
  return DataPtr(host.data_ptr().get(), new Block{host, host.nbytes()}, &free_block, DEVICE);
}

struct Allocator final : c10::Allocator {
  DataPtr allocate(size_t bytes) override {
    Storage host(Storage::use_byte_size_t(), bytes, c10::GetCPUAllocator(), false);
    if (bytes) std::memset(host.data_ptr().get(), 0xFF, bytes);  // NaN, for who reads what nobody wrote
    return held(host);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(DeviceType::CUDA, &allocator);

Storage counted(const Storage& host) {
  return Storage(Storage::use_byte_size_t(), host.nbytes(), held(host), &allocator, true);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  Guard() = default;
  explicit Guard(DeviceType) {}
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return DEVICE; }
  Device getDevice() const override { return DEVICE; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::UNSAFE, DEVICE, 0); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::UNSAFE, DEVICE, 0); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::UNSAFE, DEVICE, 0); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// The same memory as a tensor or storage of the CPU.
Storage on_host(const Storage& storage) {
  DataPtr memory(const_cast<void*>(storage.data()), Device(DeviceType::CPU));
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(memory), c10::GetCPUAllocator(), true);
}

at::Tensor shaped_like(const at::Tensor& like, at::Tensor made) {
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides());
  impl->set_storage_offset(like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return made;
}

// Operators that a GPU has for tensors of both devices; all others refuse that.
const std::unordered_set<std::string> CROSSING = {
    "aten::copy_", "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
// Operators for which the host waits, which a capture refuses.
const std::unordered_set<std::string> WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::repeat_interleave"};

at::Tensor fresh(const at::Tensor& like, Storage storage, DispatchKey key) {
  return shaped_like(
      like, at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype()));
}

// Known to autograd and to inference mode as its base is.
at::Tensor view(const at::Tensor& like, const at::Tensor& base) {
  return shaped_like(
      like,
      at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, Storage(base.storage()), base.key_set(), like.dtype()));
}

struct Pair {
  at::Tensor ours, host;
};

void compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name().name;
  const auto first = stack->size() - op.schema().arguments().size();
  std::vector<Pair> pairs;
  bool ours = true, masked = false;
  std::vector<at::Tensor> foreign;

  auto lend = [&](const at::Tensor& tensor) -> at::Tensor {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) {
      foreign.push_back(tensor);
      return tensor;
    }
    for (const auto& pair : pairs) {
      if (pair.ours.is_same(tensor)) return pair.host;
    }
    masked |= !pairs.empty() && tensor.scalar_type() == at::kBool;
    pairs.push_back({tensor, fresh(tensor, on_host(tensor.storage()), DispatchKey::CPU)});
    return pairs.back().host;
  };
  for (auto at = first; at < stack->size(); ++at) {
    IValue& value = (*stack)[at];
    if (value.isTensor()) {
      value = lend(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> lent;
      for (const at::Tensor& tensor : value.toTensorVector()) lent.push_back(lend(tensor));
      value = IValue(lent);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> lent;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
        lent.push_back(tensor.has_value() ? std::optional<at::Tensor>(lend(*tensor)) : std::nullopt);
      }
      value = IValue(lent);
    } else if (value.isDevice()) {
      ours = value.toDevice().is_cuda();
      value = IValue(Device(DeviceType::CPU));
    }
  }
  for (const auto& tensor : foreign) {
    TORCH_CHECK(
        pairs.empty() || tensor.dim() == 0 || CROSSING.count(name),
        "Expected all tensors to be on the same device, but ", name, " got one of ", tensor.sizes(), " on the CPU");
  }
  const bool crosses = !foreign.empty() && CROSSING.count(name);
  TORCH_CHECK(
      !capturing || !(crosses || WAITING.count(name) || (name == "aten::index" && masked)),
      "CUDA error: operation not permitted when stream is capturing: ", name);

  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);

  for (const auto& [tensor, host] : pairs) {  // what an operator made another shape of, or gave more memory
    auto* impl = tensor.unsafeGetTensorImpl();
    if (host.storage().data() != tensor.storage().data() && host.storage().nbytes()) {
      impl->set_storage_keep_dtype(counted(host.storage()));
    }
    if (tensor.sizes() != host.sizes() || tensor.strides() != host.strides()) {
      impl->set_sizes_and_strides(host.sizes(), host.strides());
    }
    if (tensor.storage_offset() != host.storage_offset()) impl->set_storage_offset(host.storage_offset());
  }
  auto give_back = [&](const at::Tensor& tensor) -> at::Tensor {
    if (!tensor.defined() || tensor.is_cuda() || !ours) return tensor;
    for (const auto& pair : pairs) {
      if (pair.host.is_same(tensor)) return pair.ours;
    }
    for (const auto& one : foreign) {
      if (one.is_same(tensor)) return tensor;
    }
    const Storage storage = tensor.storage();
    for (const auto& pair : pairs) {  // a view
      if (storage.nbytes() && pair.host.storage().data() == storage.data()) {
        return view(tensor, pair.ours);
      }
    }
    return fresh(tensor, counted(storage), DispatchKey::CUDA);
  };
  for (auto at = stack->size() - op.schema().returns().size(); at < stack->size(); ++at) {
    IValue& value = (*stack)[at];
    if (value.isTensor()) {
      value = give_back(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> given;
      for (const at::Tensor& tensor : value.toTensorVector()) given.push_back(give_back(tensor));
      value = IValue(given);
    }
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>());
}
TORCH_LIBRARY_IMPL(aten, CUDA, library) {  // which torch has for every device, by a table of its own
  library.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&compute>());
}

}  // namespace

// torch looks it up by this name.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  Device getDeviceFromPtr(void*) const override { return DEVICE; }
  void deviceSynchronize(DeviceIndex) const override {}
};
namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}

extern "C" {
int64_t emulated_used() { return used; }
int64_t emulated_peak() { return peak; }
void emulated_reset_peak() { peak = used.load(); }
void emulated_limit(int64_t bytes) { limit = bytes; }
void emulated_capturing(bool on) { capturing = on; }
bool emulated_is_capturing() { return capturing; }
void emulated_replaying(bool on) { replaying = on; }
}
