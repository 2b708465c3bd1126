// device_app BUNDLE TARGET [FEED.npz] [--graph NAME] [--threads N] [--key PUBLIC.pem]
//
// Without a feed it runs the bundle's golden feed and compares. Prints the outputs: a line with name, dtype and shape,
// and a line with the numbers. Exit code 0; 1 where the self-test fails; 2 where something is refused.
#include <cctype>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>

#include "bundle.hpp"
#include "feed.hpp"
#include "session.hpp"

namespace {

constexpr char kUsage[] = "device_app BUNDLE TARGET [FEED.npz] [--graph NAME] [--threads N] [--key PUBLIC.pem]";

struct Options {
    std::vector<std::string> words;
    std::optional<std::string> graph, threads, key;
};

Options parse(int count, char** words) {
    Options options;
    for (int index = 1; index < count; ++index) {
        const std::string word = words[index];
        auto* named = word == "--graph"     ? &options.graph
                      : word == "--threads" ? &options.threads
                      : word == "--key"     ? &options.key
                                            : nullptr;
        if (named && index + 1 < count) *named = words[++index];
        else options.words.push_back(word);
    }
    if (options.words.size() < 2 || options.words.size() > 3 || options.words[0][0] == '-')
        throw std::runtime_error(std::string("usage: ") + kUsage);
    return options;
}

int threads_of(const Options& options) {
    if (!options.threads) return 0;
    const std::string& text = *options.threads;
    const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || text.empty() || text.size() > 4 || std::stoi(text) < 1)
        throw std::runtime_error("--threads takes a number from 1 on, not " + text);
    return std::stoi(text);
}

std::unique_ptr<Session> open(Engine engine, int threads) {
    const std::string backend = engine.record.at("backend");
#ifdef WITH_OPENVINO
    if (backend == "openvino") return open_openvino(std::move(engine), threads);
#endif
#ifdef WITH_ONNXRUNTIME
    if (backend == "onnxruntime") return open_onnxruntime(std::move(engine), threads);
#endif
    throw std::runtime_error("this app was built without the backend " + backend);
}

Arrays read_feed(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read");
    return parse_npz(Bytes(std::istreambuf_iterator<char>(file), {}), path);
}

void print(const Arrays& outputs) {
    for (const auto& [name, array] : outputs) {
        std::printf("%s %s", name.c_str(), array.dtype.c_str());
        for (const auto size : array.shape) std::printf(" %lld", static_cast<long long>(size));
        std::printf("\n");
        for (std::size_t index = 0; index < array.size(); ++index)  // enough digits to read the same number back
            std::printf("%s%.*g", index ? " " : "", array.dtype == "float32" ? 9 : 17, array.at(index));
        std::printf("\n");
    }
}

int run(int count, char** words) {
    const Options options = parse(count, words);
    const Bundle bundle(options.words[0], options.key);
    const std::string target = options.words[1];
    const nlohmann::json& graph = bundle.graph(options.graph);
    Engine engine = bundle.engine(graph, target);
    const nlohmann::json inputs = engine.record.at("inputs");
    const bool self_test = options.words.size() == 2;
    const nlohmann::json& golden = graph.at("golden");
    const std::string golden_feed = golden.at("feed"), golden_outputs = golden.at("expected");
    const Arrays feed = self_test ? parse_npz(bundle.read(golden_feed), golden_feed) : read_feed(options.words[2]);
    check_feed(inputs, feed);

    const auto session = open(std::move(engine), threads_of(options));
    const Arrays outputs = session->run(feed);
    print(outputs);
    if (!self_test) return 0;
    const double allowed = golden.at("tolerance").at(target);
    const double found = largest_difference(outputs, parse_npz(bundle.read(golden_outputs), golden_outputs));
    std::fprintf(stderr, "%s on %s: self-test %s, largest difference %g, allowed %g\n", bundle.name().c_str(),
                 target.c_str(), found <= allowed ? "passed" : "FAILED", found, allowed);
    return found <= allowed ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
    try {
        return run(count, words);
    } catch (const std::exception& error) {
        std::string said = error.what();  // a damaged file may be quoted in it: nothing that a terminal would act on
        for (char& letter : said)
            if (!std::isprint(static_cast<unsigned char>(letter))) letter = '?';
        std::fprintf(stderr, "error: %s\n", said.c_str());
        return 2;
    }
}
