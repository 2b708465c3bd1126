// An opened engine. One file per backend: openvino_session.cpp, onnxruntime_session.cpp.
#pragma once

#include <memory>

#include "bundle.hpp"

class Session {
public:
    virtual ~Session() = default;
    virtual Arrays run(const Arrays& feed) = 0;
};

// `threads`: CPU threads, 0 for the backend's own choice.
std::unique_ptr<Session> open_openvino(Engine engine, int threads);
std::unique_ptr<Session> open_onnxruntime(Engine engine, int threads);
