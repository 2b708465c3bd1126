#include <onnxruntime_cxx_api.h>

#include <set>
#include <stdexcept>

#include "session.hpp"

namespace {

// The options an engine may set: how to compute, never where to read or write.
const std::set<std::string> kOptions = {
    "mlas.enable_gemm_fastmath_arm64_bfloat16", "session.enable_quant_qdq_cleanup", "session.intra_op.allow_spinning",
    "session.qdqisint8allowed", "session.set_denormal_as_zero", "session.x64quantprecision",
};

const std::map<std::string, ONNXTensorElementDataType> kTypes = {
    {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL},       {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},     {"int16", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16},
    {"uint16", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16},   {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
    {"uint32", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32},   {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
    {"uint64", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64},   {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},   {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE},
};

std::string to_numpy(ONNXTensorElementDataType type) {
    for (const auto& [name, known] : kTypes)
        if (known == type) return name;
    throw std::runtime_error("an output is of a type this app does not know");
}

Ort::SessionOptions make_options(const nlohmann::json& record, int threads) {
    Ort::SessionOptions options;
    options.SetInterOpNumThreads(1);
    if (threads > 0) options.SetIntraOpNumThreads(threads);
    for (const auto& option : record.at("options").items()) {
        if (!kOptions.count(option.key())) throw std::runtime_error("an engine may not set " + option.key());
        options.AddConfigEntry(option.key().c_str(), option.value().get<std::string>().c_str());
    }
    return options;
}

class OnnxRuntimeSession : public Session {
public:
    OnnxRuntimeSession(const Engine& engine, int threads)
        : record_(engine.record), env_(ORT_LOGGING_LEVEL_FATAL, "device_app"), session_(nullptr) {
        const Bytes& model = engine.files.at(record_.at("entry"));
        session_ = Ort::Session(env_, model.data(), model.size(), make_options(record_, threads));
    }

    Arrays run(const Arrays& feed) override {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        std::vector<const char*> input_names, output_names;
        std::vector<Ort::Value> inputs;
        for (const auto& [name, array] : feed) {
            input_names.push_back(name.c_str());
            void* data = const_cast<std::uint8_t*>(array.data.data());  // ONNX Runtime only reads an input
            inputs.push_back(Ort::Value::CreateTensor(memory, data, array.data.size(), array.shape.data(),
                                                      array.shape.size(), kTypes.at(array.dtype)));
        }
        for (const auto& spec : record_.at("outputs"))
            output_names.push_back(spec.at("name").get_ref<const std::string&>().c_str());

        const auto results = session_.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), inputs.size(),
                                          output_names.data(), output_names.size());
        Arrays outputs;
        for (std::size_t index = 0; index < results.size(); ++index) {
            const auto info = results[index].GetTensorTypeAndShapeInfo();
            Array array{to_numpy(info.GetElementType()), info.GetShape(), {}};
            const auto* data = static_cast<const std::uint8_t*>(results[index].GetTensorRawData());
            array.data.assign(data, data + array.size() * item_size(array.dtype));
            outputs[output_names[index]] = std::move(array);
        }
        return outputs;
    }

private:
    nlohmann::json record_;
    Ort::Env env_;
    Ort::Session session_;
};

}  // namespace

std::unique_ptr<Session> open_onnxruntime(Engine engine, int threads) {
    return std::make_unique<OnnxRuntimeSession>(engine, threads);
}
