#include <openvino/openvino.hpp>
#include <set>
#include <stdexcept>

#include "session.hpp"

namespace {

// The options an engine may set: how to compute, never where to read or write (CACHE_DIR, CONFIG_FILE).
const std::set<std::string> kOptions = {
    "CPU_DENORMALS_OPTIMIZATION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING",
    "EXECUTION_MODE_HINT", "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "NUM_STREAMS", "PERFORMANCE_HINT",
    "SCHEDULING_CORE_TYPE",
};

// OpenVINO's short names from numpy's: float32 -> f32, uint8 -> u8.
ov::element::Type to_openvino(const std::string& dtype) {
    if (dtype == "bool") return ov::element::boolean;
    return ov::element::Type(dtype.substr(0, 1) + dtype.substr(dtype.find_first_of("0123456789")));
}

std::string to_numpy(const ov::element::Type& type) {
    const std::string name = type.get_type_name();
    if (name == "boolean") return "bool";
    return (name[0] == 'f' ? "float" : name[0] == 'i' ? "int" : "uint") + name.substr(1);
}

class OpenVINOSession : public Session {
public:
    OpenVINOSession(Engine engine, int threads) : engine_(std::move(engine)) {
        const std::string entry = engine_.record.at("entry");
        const Bytes& xml = engine_.files.at(entry);
        Bytes& weights = engine_.files.at(entry.substr(0, entry.rfind('.')) + ".bin");
        ov::AnyMap settings{{"PERFORMANCE_HINT", "LATENCY"}};
        for (const auto& option : engine_.record.at("options").items()) {
            if (!kOptions.count(option.key())) throw std::runtime_error("an engine may not set " + option.key());
            settings[option.key()] = option.value().get<std::string>();
        }
        if (threads > 0) settings["INFERENCE_NUM_THREADS"] = threads;

        ov::Core core;
        const ov::Tensor bytes(ov::element::u8, {weights.size()}, weights.data());  // read in place: engine_ keeps it
        const auto model = core.read_model(std::string(xml.begin(), xml.end()), bytes);
        compiled_ = core.compile_model(model, engine_.record.at("device").get<std::string>(), settings);
        request_ = compiled_.create_infer_request();
    }

    Arrays run(const Arrays& feed) override {
        for (const auto& [name, array] : feed) {
            const ov::Shape shape(array.shape.begin(), array.shape.end());
            void* data = const_cast<std::uint8_t*>(array.data.data());  // OpenVINO only reads an input
            request_.set_tensor(name, ov::Tensor(to_openvino(array.dtype), shape, data));
        }
        request_.infer();
        Arrays outputs;
        for (const auto& spec : engine_.record.at("outputs")) {
            const std::string name = spec.at("name");
            const ov::Tensor result = request_.get_tensor(name);
            const auto* data = static_cast<const std::uint8_t*>(result.data());
            const ov::Shape shape = result.get_shape();
            outputs[name] = {to_numpy(result.get_element_type()), {shape.begin(), shape.end()},
                             Bytes(data, data + result.get_byte_size())};
        }
        return outputs;
    }

private:
    Engine engine_;
    ov::CompiledModel compiled_;
    ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Session> open_openvino(Engine engine, int threads) {
    return std::make_unique<OpenVINOSession>(std::move(engine), threads);
}
