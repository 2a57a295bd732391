# Finds cJSON: target cJSON_lib.
find_path(cJSON_INCLUDE_DIR cjson/cJSON.h)
find_library(cJSON_LIBRARY cjson)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(cJSON_lib REQUIRED_VARS cJSON_LIBRARY cJSON_INCLUDE_DIR)
if(cJSON_lib_FOUND AND NOT TARGET cJSON_lib)
  add_library(cJSON_lib UNKNOWN IMPORTED)
  set_target_properties(cJSON_lib PROPERTIES IMPORTED_LOCATION ${cJSON_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${cJSON_INCLUDE_DIR})
endif()
