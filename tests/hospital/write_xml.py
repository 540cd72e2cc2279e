"""Writers of the XML of carts, by their published descriptions and real files; none of them is used by the readers."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np

from tests.hospital.ecgs import BIRTH, COMMENT, FAMILY, GIVEN, Ecg

MUSE_UNITS = "MICROVOLTS"


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<i2").tobytes()).decode()


def muse(
    ecg: Ecg, path: Path, *, units: str | None = MUSE_UNITS, exponent: int = 0, encoding: str = "ISO-8859-1"
) -> None:
    """`RestingECG` with the waveforms `Median` (first, as MUSE writes it) and `Rhythm`."""

    def waveform(kind: str, counts: np.ndarray) -> str:
        leads = ""
        for name, row in zip(ecg.leads, counts, strict=True):
            payload = row.astype("<i2").tobytes()
            shown = f"<LeadAmplitudeUnits>{units}</LeadAmplitudeUnits>" if units else ""
            leads += (
                f"<LeadData><LeadByteCountTotal>{len(payload)}</LeadByteCountTotal><LeadTimeOffset>0</LeadTimeOffset>"
                f"<LeadSampleCountTotal>{len(row)}</LeadSampleCountTotal>"
                f"<LeadAmplitudeUnitsPerBit>{ecg.step_uv}</LeadAmplitudeUnitsPerBit>{shown}"
                f"<LeadHighLimit>2147483647</LeadHighLimit><LeadLowLimit>268435456</LeadLowLimit><LeadID>{name}</LeadID>"
                f"<LeadOffsetFirstSample>0</LeadOffsetFirstSample><FirstSampleBaseline>0</FirstSampleBaseline>"
                f"<LeadSampleSize>2</LeadSampleSize><LeadOff>FALSE</LeadOff>"
                f"<LeadDataCRC32>{zlib.crc32(payload)}</LeadDataCRC32>"
                f"<WaveFormData>\n{base64.encodebytes(payload).decode()}</WaveFormData></LeadData>"
            )
        base = ecg.rate_hz / 10**exponent
        return (
            f"<Waveform><WaveformType>{kind}</WaveformType><WaveformStartTime>0</WaveformStartTime>"
            f"<NumberofLeads>{len(counts)}</NumberofLeads><SampleType>CONTINUOUS_SAMPLES</SampleType>"
            f"<SampleBase>{base:g}</SampleBase><SampleExponent>{exponent}</SampleExponent>"
            f"<HighPassFilter>16</HighPassFilter><LowPassFilter>150</LowPassFilter><ACFilter>50</ACFilter>{leads}</Waveform>"
        )

    lines = "".join(
        f"<DiagnosisStatement><StmtFlag>ENDSLINE</StmtFlag><StmtText>{text}</StmtText></DiagnosisStatement>"
        for text in ecg.statements
    )
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n<RestingECG>'
        f"<MuseInfo><MuseVersion>9.0.9.18167</MuseVersion></MuseInfo>"
        f"<PatientDemographics><PatientID>{ecg.patient_id}</PatientID><PatientAge>72</PatientAge><AgeUnits>YEARS</AgeUnits>"
        f"<DateofBirth>{BIRTH:%m-%d-%Y}</DateofBirth><Gender>FEMALE</Gender><PatientLastName>{FAMILY}</PatientLastName>"
        f"<PatientFirstName>{GIVEN}</PatientFirstName></PatientDemographics>"
        f"<TestDemographics><DataType>RESTING</DataType><Site>1</Site><Status>Unconfirmed</Status>"
        f"<AcquisitionTime>{ecg.acquired:%H:%M:%S}</AcquisitionTime>"
        f"<AcquisitionDate>{ecg.acquired:%m-%d-%Y}</AcquisitionDate><ReferringMDLastName>{FAMILY}</ReferringMDLastName>"
        f"</TestDemographics>"
        f"<RestingECGMeasurements><VentricularRate>58</VentricularRate><PRInterval>{ecg.pr_ms}</PRInterval>"
        f"<QRSDuration>{ecg.qrs_ms}</QRSDuration><QTInterval>{ecg.qt_ms}</QTInterval><PAxis>{ecg.p_axis}</PAxis>"
        f"<RAxis>{ecg.qrs_axis}</RAxis><TAxis>{ecg.t_axis}</TAxis></RestingECGMeasurements>"
        f"<Diagnosis><DiagnosisStatement><StmtFlag>ENDSLINE</StmtFlag><StmtText>{COMMENT}</StmtText></DiagnosisStatement>"
        f"</Diagnosis><OriginalDiagnosis>{lines}</OriginalDiagnosis>"
        f"{waveform('Median', ecg.median)}{waveform('Rhythm', ecg.counts)}"
        f"<PharmaData><PharmaUniqueECGID>{ecg.test_id}</PharmaUniqueECGID></PharmaData></RestingECG>"
    )
    path.write_bytes(text.encode(encoding))


def aecg(ecg: Ecg, path: Path, *, unit: str = "uV") -> None:
    """`AnnotatedECG` (HL7 V3), a rhythm series and one of representative beats derived from it."""

    def series(counts: np.ndarray, code: str) -> str:
        sequences = (
            f'<component><sequence><code code="TIME_ABSOLUTE"/><value xsi:type="GLIST_TS">'
            f'<head value="{ecg.acquired:%Y%m%d%H%M%S}.000"/><increment value="{1 / ecg.rate_hz:g}" unit="s"/></value>'
            f"</sequence></component>"
        )
        for name, row in zip(ecg.leads, counts, strict=True):
            digits = " ".join(map(str, row.tolist()))
            sequences += (
                f'<component><sequence><code code="MDC_ECG_LEAD_{name.upper()}" codeSystem="2.16.840.1.113883.6.24"/>'
                f'<value xsi:type="SLIST_PQ"><origin value="0" unit="{unit}"/>'
                f'<scale value="{ecg.step_uv:g}" unit="{unit}"/><digits>{digits}</digits></value></sequence></component>'
            )
        return (
            f'<id root="{ecg.test_id}.1"/><code code="{code}"/><effectiveTime><low value="{ecg.acquired:%Y%m%d%H%M%S}"/>'
            f"</effectiveTime><component><sequenceSet>{sequences}</sequenceSet></component>"
        )

    measured = "".join(
        f'<component><annotation><code code="{code}"/><value xsi:type="PQ" value="{value}" unit="{shown}"/></annotation>'
        f"</component>"
        for code, value, shown in (
            ("MDC_ECG_TIME_PD_PR", ecg.pr_ms, "ms"),
            ("MDC_ECG_TIME_PD_QRS", ecg.qrs_ms, "ms"),
            ("MDC_ECG_TIME_PD_QT", ecg.qt_ms / 1000, "s"),
            ("MDC_ECG_ANGLE_QRS_FRONT", ecg.qrs_axis, "deg"),
        )
    )
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<AnnotatedECG xmlns="urn:hl7-org:v3" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><id root="{ecg.test_id}"/>'
        f'<text>{COMMENT}</text><effectiveTime><low value="{ecg.acquired:%Y%m%d%H%M%S}"/></effectiveTime>'
        f"<componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject>"
        f'<id root="2.16.840.1" extension="{ecg.patient_id}"/><subjectDemographicPerson>'
        f"<name><family>{FAMILY}</family><given>{GIVEN}</given></name>"
        f'<administrativeGenderCode code="F"/><birthTime value="{BIRTH:%Y%m%d}"/></subjectDemographicPerson>'
        f"</trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>"
        f"<component><series>{series(ecg.counts, 'RHYTHM')}"
        f"<subjectOf><annotationSet>{measured}</annotationSet></subjectOf>"
        f"<derivation><derivedSeries>{series(ecg.median, 'REPRESENTATIVE_BEAT')}</derivedSeries></derivation>"
        f"</series></component></AnnotatedECG>",
        encoding="utf-8",
    )


def cardiosoft(ecg: Ecg, path: Path, *, unit: str = "uVperLsb") -> None:
    """`CardiologyXML` of CASE and CardioSoft: `StripData` beside the `MedianSamples` of the measurements."""

    def samples(counts: np.ndarray) -> str:
        leads = "".join(
            f'<WaveformData lead="{name}">\t{",".join(map(str, row.tolist()))},\n</WaveformData>'
            for name, row in zip(ecg.leads, counts, strict=True)
        )
        return (
            f'<NumberOfLeads>{len(counts)}</NumberOfLeads><SampleRate units="Hz">{ecg.rate_hz}</SampleRate>'
            f"<ChannelSampleCountTotal>{counts.shape[1]}</ChannelSampleCountTotal>"
            f'<Resolution units="{unit}">{ecg.step_uv:g}</Resolution>{leads}'
        )

    when = ecg.acquired
    path.write_bytes(
        (
            f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<CardiologyXML><ObservationType>RestECG</ObservationType>'
            f"<ObservationDateTime><Hour>{when.hour}</Hour><Minute>{when.minute}</Minute><Second>{when.second}</Second>"
            f"<Day>{when.day}</Day><Month>{when.month}</Month><Year>{when.year}</Year></ObservationDateTime>"
            f"<UID><DICOMStudyUID>{ecg.test_id}</DICOMStudyUID></UID><PatientInfo><PID>{ecg.patient_id}</PID>"
            f"<Name><FamilyName>{FAMILY}</FamilyName><GivenName>{GIVEN}</GivenName></Name>"
            f'<Age units="years">72</Age><BirthDateTime><Day>{BIRTH.day}</Day><Month>{BIRTH.month}</Month>'
            f"<Year>{BIRTH.year}</Year></BirthDateTime><Gender>FEMALE</Gender></PatientInfo>"
            f'<FilterSetting><Filter50Hz>yes</Filter50Hz><Filter60Hz>no</Filter60Hz><LowPass units="Hz">150</LowPass>'
            f"</FilterSetting><Interpretation><Diagnosis><DiagnosisText>{COMMENT}</DiagnosisText></Diagnosis>"
            f"</Interpretation><RestingECGMeasurements>"
            f'<VentricularRate units="bpm">58</VentricularRate><PQInterval units="ms">{ecg.pr_ms}</PQInterval>'
            f'<QRSDuration units="ms">{ecg.qrs_ms}</QRSDuration><QTInterval units="ms">{ecg.qt_ms}</QTInterval>'
            f'<PAxis units="degree">{ecg.p_axis}</PAxis><RAxis units="degree">{ecg.qrs_axis}</RAxis>'
            f'<TAxis units="degree">{ecg.t_axis}</TAxis>'
            f"<MedianSamples>{samples(ecg.median)}</MedianSamples></RestingECGMeasurements>"
            f"<StripData>{samples(ecg.counts)}</StripData></CardiologyXML>"
        ).encode("latin-1")
    )


def cardiosoft_exercise(ecg: Ecg, path: Path, *, count: str = "behind") -> None:
    """`CardiologyXML` of an exercise test: the full disclosure alone, all leads' first samples, all leads' second ...

    Parameters
    ----------
    count
        Where `SampleCountTotal` stands within the data: "behind", "before", or "" for nowhere.
    """
    digits = ",".join(map(str, ecg.counts.T.ravel().tolist())) + ","
    total = f"<SampleCountTotal>{ecg.counts.shape[1]}</SampleCountTotal>"
    data = f"{total if count == 'before' else ''}{digits}{total if count == 'behind' else ''}"
    whole = (
        f"<FullDisclosure><StartTime><Minute>0</Minute><Second>0</Second></StartTime>"
        f"<NumberOfChannels>{len(ecg.counts)}</NumberOfChannels>"
        f'<SampleRate units="Hz">{ecg.rate_hz}</SampleRate><Resolution units="uVperLsb">{ecg.step_uv:g}</Resolution>'
        f"<LeadOrder>{','.join(ecg.leads)}</LeadOrder><FullDisclosureData>{data}</FullDisclosureData></FullDisclosure>"
    )
    cardiosoft(ecg, path)
    text = path.read_bytes().decode("latin-1")
    path.write_bytes((text[: text.index("<StripData>")] + whole + "</CardiologyXML>").encode("latin-1"))


def mortara(ecg: Ecg, path: Path, *, units_per_mv: str | None = "") -> None:
    """`ECG` of ELI carts: `CHANNEL` beside the mean beats of `TYPICAL_CYCLE`."""
    scale = f' UNITS_PER_MV="{1000 / ecg.step_uv:g}"' if units_per_mv == "" else units_per_mv or ""

    def channels(tag: str, counts: np.ndarray) -> str:
        return "".join(
            f'<{tag} OFFSET="0" BITS="16" FORMAT="SIGNED"{scale} DURATION="{len(row)}" SAMPLE_FREQ="{ecg.rate_hz}" '
            f'ENCODING="BASE64" NAME="{name}" DATA="{_base64(row)}"/>'
            for name, row in zip(ecg.leads, counts, strict=True)
        )

    statements = "".join(f'<STATEMENT TEXT="{text}" REASON=""/>' for text in ecg.statements)
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<!--Generated by ELI Link-->\n'
        f'<ECG ACQUISITION_TIME="{ecg.acquired:%Y%m%d%H%M%S}" AGE="72" AGE_UNITS="YEARS" VENT_RATE="58" NUM_QRS="10">'
        f'<SUBJECT LAST_NAME="{FAMILY}" FIRST_NAME="{GIVEN}" ID="{ecg.patient_id}" GENDER="Female" '
        f'DOB="{BIRTH:%Y%m%d}" COMMENT="{COMMENT}"/><SOURCE TYPE="ELI" MODEL="ELI 280" MANUFACTURER="MORTARA" '
        f'HIGH_PASS_FILTER="0.05" LOW_PASS_FILTER="150" NOTCH_FILTER="50"/>'
        f"<AUTOMATIC_INTERPRETATION>{statements}</AUTOMATIC_INTERPRETATION>"
        f'<TYPICAL_CYCLE BITS="16" FORMAT="SIGNED"{scale} DURATION="{ecg.median.shape[1]}" SAMPLE_FREQ="{ecg.rate_hz}" '
        f'ENCODING="BASE64" PR_DURATION="{ecg.pr_ms}" QRS_DURATION="{ecg.qrs_ms}" QT="{ecg.qt_ms}" '
        f'P_AXIS="{ecg.p_axis}" QRS_AXIS="{ecg.qrs_axis}" T_AXIS="{ecg.t_axis}">'
        f"{channels('TYPICAL_CYCLE_CHANNEL', ecg.median)}</TYPICAL_CYCLE>{channels('CHANNEL', ecg.counts)}</ECG>",
        encoding="utf-8",
    )


def philips(
    ecg: Ecg,
    path: Path,
    *,
    version: str = "1.04",
    xli: bool = True,
    encoding: str = "UTF-16",
    pulse: int = 0,
    resolution: bool = True,
) -> None:
    """`restingecgdata` (Sierra): rhythm packed by XLI with limb leads as residuals, or plain; `repbeats` beside it.

    Parameters
    ----------
    pulse
        Samples of a calibration pulse behind the rhythm that `durationperchannel` does not count.
    """
    counts = ecg.counts
    if pulse:
        wave = np.zeros(pulse, dtype=np.int64)
        wave[pulse // 4 : pulse // 2] = round(1000 / ecg.step_uv)
        counts = np.concatenate([counts, np.tile(wave, (len(counts), 1))], axis=1)
    stored = _residuals(counts) if xli else counts
    packed = b"".join(map(_xli, stored)) if xli else counts.astype("<i2").tobytes()
    data = base64.b64encode(packed).decode()
    shown = f"<resolution>{ecg.step_uv:g}</resolution>" if resolution else ""
    scale = f' resolution="{ecg.step_uv:g}"' if resolution and version != "1.03" else ""
    beats = "".join(
        f'<repbeat leadname="{name}"><waveform duration="{1000 * len(row) // ecg.rate_hz}">{_base64(row)}</waveform></repbeat>'
        for name, row in zip(ecg.leads, ecg.median, strict=True)
    )
    statements = "".join(
        f"<statement><statementcode>{text.split()[0][:4].upper()}</statementcode><leftstatement>{text}</leftstatement>"
        f"<rightstatement>{COMMENT}</rightstatement></statement>"
        for text in ecg.statements
    )
    path.write_bytes(
        (
            f'<?xml version="1.0" encoding="{encoding}"?>\n<restingecgdata xmlns="http://www3.medical.philips.com">'
            f"<documentinfo><documentname>{FAMILY}.xml</documentname><documenttype>{'SierraECG' if version == '1.03' else 'PhilipsECG'}"
            f"</documenttype><documentversion>{version}</documentversion></documentinfo>"
            f'<dataacquisition date="{ecg.acquired:%Y-%m-%d}" time="{ecg.acquired:%H:%M:%S}">'
            f"<acquirer><operator>{FAMILY}</operator></acquirer><signalcharacteristics>"
            f"<samplingrate>{ecg.rate_hz}</samplingrate>{shown}<signaloffset>0</signaloffset><signalsigned>TRUE</signalsigned>"
            f"<numberchannelsallocated>12</numberchannelsallocated><acquisitiontype>STD-12</acquisitiontype>"
            f"</signalcharacteristics></dataacquisition>"
            f"<patient><generalpatientdata><patientid>{ecg.patient_id}</patientid><name><lastname>{FAMILY}</lastname>"
            f"<firstname>{GIVEN}</firstname></name><age><dateofbirth>{BIRTH:%Y-%m-%d}</dateofbirth><years>72</years></age>"
            f"<sex>Female</sex></generalpatientdata></patient>"
            f'<interpretations><interpretation author="Philips ECG"><globalmeasurements><heartrate>58</heartrate>'
            f"<print>{ecg.pr_ms}</print><qrsdur>{ecg.qrs_ms}</qrsdur><qtint>{ecg.qt_ms}</qtint>"
            f"<pfrontaxis>{ecg.p_axis}</pfrontaxis><qrsfrontaxis>{ecg.qrs_axis}</qrsfrontaxis><tfrontaxis>{ecg.t_axis}</tfrontaxis>"
            f"</globalmeasurements>{statements}</interpretation></interpretations>"
            f'<waveforms><repbeats dataencoding="Base64" samplespersec="{ecg.rate_hz}" resolution="{ecg.step_uv:g}">{beats}</repbeats>'
            f'<parsedwaveforms numberofleads="12" leadlabels="{" ".join(ecg.leads)}" '
            f'durationperchannel="{1000 * ecg.counts.shape[1] // ecg.rate_hz}" samplespersecond="{ecg.rate_hz}"{scale} '
            f'dataencoding="Base64" compression="{"XLI" if xli else "Uncompressed"}">\n{data}\n</parsedwaveforms></waveforms>'
            f"</restingecgdata>"
        ).encode(encoding)
    )


def _residuals(counts: np.ndarray) -> np.ndarray:
    """Return what is stored of twelve leads: III, aVR, aVL and aVF as what I and II leave to be said."""
    one, two, three, avr, avl, avf = counts[:6]
    stored = counts.copy()
    stored[2] = two - one - three
    stored[3] = -((one + two) // 2) - avr
    stored[4] = (one - three) // 2 - avl
    stored[5] = (two + three) // 2 - avf
    return stored


def _xli(row: np.ndarray) -> bytes:
    """Pack a lead: second differences, shifted by 64, high bytes before low ones, LZW of ten bits."""
    differences = 2 * row[1:-1] - row[:-2] - row[2:]
    codes = np.concatenate([row[:2], differences[1:] + 64, [64]]).astype(np.int64) & 0xFFFF
    packed = _lzw(bytes((codes >> 8).tolist()) + bytes((codes & 0xFF).tolist()))
    return struct.pack("<ihh", len(packed), 0, int(differences[0])) + packed


def _lzw(content: bytes, bits: int = 10) -> bytes:
    codes = {bytes([k]): k for k in range(256)}
    out, n_bits, room, current = 0, 0, (1 << bits) - 2, b""
    for k in range(len(content)):
        longer = current + content[k : k + 1]
        if longer in codes:
            current = longer
            continue
        out, n_bits = (out << bits) | codes[current], n_bits + bits
        if len(codes) <= room:
            codes[longer] = len(codes)
        current = content[k : k + 1]
    out, n_bits = (out << bits) | codes[current], n_bits + bits
    lacking = -n_bits % 8
    return (out << lacking).to_bytes((n_bits + lacking) // 8, "big")
