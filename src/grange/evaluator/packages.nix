# Tells what packages of a set are, for `grange.evaluator.packages`; `job` is a file of JSON:
#   set        where the package set's expression lies
#   system, config, overlays (files): what it is called with
#   packages   as names of images have them: folded to lower case, parts joined by dots
#   attributes as the set spells them: lists of parts
#   evaluate   false: only the names of the sets on the way to `packages` are wanted
#   blame      true: an error is not caught, so that Nix tells it
#
# Nothing of a job is ever part of an expression. What Nix can catch (throw and assert) is an answer
# for its attribute alone; whatever else goes wrong ends the whole evaluation.
{ job }:

let
  inherit (builtins) attrNames concatMap elem elemAt filter foldl' genList hasAttr head isAttrs isBool
    isFunction isList isString length listToAttrs match replaceStrings split stringLength substring
    tryEval typeOf;

  told = builtins.fromJSON (builtins.readFile job);

  # --- The package set ---------------------------------------------------------------------------

  called = {
    inherit (told) system config;
    overlays = map (file: import (/. + file)) told.overlays;
  };
  expression = import (/. + told.set);
  takes = builtins.functionArgs expression;
  refused = filter
    (name: called.${name} != (if name == "config" then { } else [ ])
      && !(isFunction expression && (takes == { } || hasAttr name takes)))
    [ "config" "overlays" ];
  result =
    if !isFunction expression && !isAttrs expression then expression
    else if refused != [ ] then throw "the package set does not take the argument '${head refused}'"
    else if !isFunction expression then expression
    else expression (if takes == { } then called else builtins.intersectAttrs takes called);
  set = if isAttrs result then result else throw "the package set is a ${typeOf result}, not a set";

  # --- Names, as `grange.oci.names` folds them -------------------------------------------------------

  characters = text: genList (at: substring at 1 text) (stringLength text);
  lower = replaceStrings (characters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (characters "abcdefghijklmnopqrstuvwxyz");
  isDigit = text: elem text (characters "0123456789");
  asked = name:
    lower (if substring 0 1 name == "_" && isDigit (substring 1 1 name) then substring 1 (-1) name else name);

  # Nobody can ask for other names, and not all of them can be said in JSON.
  namesIn = value: filter (name: stringLength name < 256 && match "[!-~]+" name != null) (attrNames value);

  # The value if it can be had without an error that Nix can catch, else `other`.
  caught = other: value: let tried = tryEval value; in if tried.success then tried.value else other;

  # What lies at `part` below `at`, both being { way, has, value }.
  below = at: part:
    let has = at.has && isAttrs at.value && hasAttr part at.value; in
    { way = at.way ++ [ part ]; inherit has; value = if has then at.value.${part} else null; };
  top = { way = [ ]; has = true; value = set; };

  # Every set on the way to a package, once, by how it is asked for; `folded` finds the first of the
  # names that fold to one, for Nix sorts them, and of equal names takes the first.
  place = at:
    let
      value = caught null (if at.has then at.value else null);
      names = if isAttrs value then namesIn value else [ ];
    in
    {
      inherit at names value;
      folded = listToAttrs (map (name: { name = asked name; value = name; }) names);
    };
  parts = package: filter isString (split "\\." package);
  key = builtins.concatStringsSep ".";
  first = count: list: genList (elemAt list) count;
  outer = way: genList (count: first count way) (length way);
  places = listToAttrs (map (way: { name = key way; value = placeOf way; })
    ([ [ ] ] ++ concatMap (package: outer (parts package)) told.packages));
  placeOf = way: place (if way == [ ] then top else meant way);

  # What is meant by a way whose parts are written as names of images have them.
  meant = way:
    let
      last = length way - 1;
      part = elemAt way last;
      above = places.${key (first last way)};
      plain = if last == 0 && isDigit (substring 0 1 part) then "_${part}" else part;
      isThere = isAttrs above.value && hasAttr part above.value;
    in
    below above.at (if isThere then part else above.folded.${part} or plain);

  unique = ways: builtins.attrValues
    (listToAttrs (map (way: { name = builtins.toJSON way; value = way; }) ways));
  ways = unique (told.attributes ++ map (package: (meant (parts package)).way) told.packages);
  names = map (each: { way = each.at.way; inherit (each) names; }) (builtins.attrValues places);

  # --- Packages -----------------------------------------------------------------------------------

  text = value: if isString value then value else if isAttrs value then value.fullName or value.shortName or "" else "";
  list = value: if isList value then value else [ value ];
  commas = texts: foldl' (all: each: if all == "" then each else "${all}, ${each}") "" (filter (each: each != "") texts);
  isTrue = value: isBool value && value;

  # Why the set may have refused a package, as far as its meta attributes tell.
  refusal = value:
    let
      meta = if isAttrs (value.meta or null) then value.meta else { };
      licenses = filter (each: isAttrs each && !(each.free or true)) (list (meta.license or [ ]));
      holes = list (meta.knownVulnerabilities or [ ]);
      platforms = filter isString (list (meta.platforms or [ ]));
      config = told.config;
    in
    if !(config.allowUnfree or false) && (isTrue (meta.unfree or false) || licenses != [ ])
    then { lack = "unfree"; message = commas (map text licenses); }
    else if !(config.allowBroken or false) && isTrue (meta.broken or false)
    then { lack = "broken"; message = ""; }
    else if !(config.allowUnsupportedSystem or false)
      && (isTrue (meta.unsupported or false) || (platforms != [ ] && !(elem told.system platforms) && length platforms == length (list meta.platforms)))
    then { lack = "unsupported"; message = ""; }
    else if isTrue (meta.insecure or false) || holes != [ ]
    then { lack = "insecure"; message = commas (map text holes); }
    else { lack = "failed"; message = ""; };

  package = value:
    let
      installed = value.meta.outputsToInstall or [ ];
      usual = value.outputName or "out";
      chosen =
        if value.outputSpecified or false then [ usual ]
        else if installed == [ ] then [ usual ]
        else installed;
      output = name:
        if hasAttr name value then value.${name}.outPath
        else if name == usual then value.outPath
        else throw "its meta.outputsToInstall names '${name}', which is no output of it";
      program = caught "" (let named = value.meta.mainProgram or ""; in if isString named then named else "");
      system = value.system or told.system;
    in
    if !(elem system [ told.system "builtin" ])
    then { lack = "unsupported"; message = "it is for ${system}"; }
    else if !(isString value.drvPath)
    then throw "its drvPath is a ${typeOf value.drvPath}, not a string"
    else {
      drv_path = value.drvPath;
      outputs = listToAttrs (map (name: { inherit name; value = "${output name}"; }) chosen);
      inherit program;
    };

  kinds = { lambda = "a function"; int = "a number"; null = "null"; };

  answer = at:
    if !at.has then { lack = "missing"; message = ""; }
    else if !(isAttrs at.value)
    then { lack = "no package"; message = "it is ${kinds.${typeOf at.value} or "a ${typeOf at.value}"}"; }
    else if (at.value.type or "") != "derivation"
    then { lack = "no package"; message = "it is a set, and a package in it is asked for as SET.NAME"; }
    else package at.value;

  evaluated = way:
    let
      at = foldl' below top way;
      whole = answer at;
      tried = tryEval (builtins.deepSeq whole whole);
      why = caught { lack = "failed"; message = ""; }
        (let found = refusal at.value; in builtins.deepSeq found found);
      said = if told.blame then whole else if tried.success then tried.value else why;
    in
    { attribute = way; } // said;
in
builtins.seq set {
  inherit names;
  packages = if told.evaluate then map evaluated ways else [ ];
}
