// Makes a kernel callable from the launcher: describes its parameters and passes the arguments on.
#pragma once

namespace mulfree_emulator {

template <class T>
constexpr char kind_of() {
    if (std::is_void_v<T>) return 'v';
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_same_v<T, bool>) return 'b';
    if (std::is_floating_point_v<T> || std::is_same_v<T, __half>) return 'f';
    if (std::is_integral_v<T> || std::is_enum_v<T>) return 'i';
    return 's';
}

template <class T>
constexpr int size_of() {
    if constexpr (std::is_void_v<T> || std::is_function_v<T>) return 1;
    else return sizeof(T);
}

template <class T>
constexpr Parameter describe_parameter() {
    using Pointee = std::remove_pointer_t<T>;
    return {kind_of<T>(), size_of<T>(), kind_of<std::remove_cv_t<Pointee>>(), size_of<Pointee>(),
            std::is_const_v<Pointee>};
}

template <class... P>
struct Entry {
    static inline void (*function)(P...);

    template <size_t... I>
    static MULFREE_UNSEEN void call(void **arguments, std::index_sequence<I...>) {
        function(*static_cast<std::remove_cv_t<P> *>(arguments[I])...);
    }

    static MULFREE_UNSEEN void run(void **arguments) { call(arguments, std::index_sequence_for<P...>{}); }

    static constexpr Parameter parameters[] = {describe_parameter<std::remove_cv_t<P>>()..., Parameter{}};
    static constexpr Kernel kernel = {run, parameters, sizeof...(P)};
};

template <class... P>
MULFREE_UNSEEN const Kernel *describe(void (*function)(P...)) {
    Entry<P...>::function = function;
    return &Entry<P...>::kernel;
}

}  // namespace mulfree_emulator
